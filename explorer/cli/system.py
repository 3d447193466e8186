"""`swinexplore doctor`."""

from __future__ import annotations

from explorer.cli import console, options


def doctor(as_json: options.Json = False) -> None:
    """Say what is installed, which devices and backends work, and how to mend the rest."""
    from explorer.doctor import examine

    findings = []
    for finding in examine(options.cache_root()):
        findings.append(finding)
        if not as_json:
            mend = f"  -> {finding.mend}" if finding.mend else ""
            console.document(f"{finding.state:8}{finding.subject:38}{finding.detail}{mend}")
    if as_json:
        works = all(finding.state != "broken" for finding in findings)
        console.json_document({"works": works, "findings": [finding.to_dict() for finding in findings]})
