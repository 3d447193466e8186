BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE architectures (
	arch_id VARCHAR(32) NOT NULL, 
	name VARCHAR NOT NULL, 
	windows JSON NOT NULL, 
	shifts JSON NOT NULL, 
	br BOOLEAN NOT NULL, 
	depth3 INTEGER NOT NULL, 
	depths JSON NOT NULL, 
	embed_dim INTEGER NOT NULL, 
	params_trainable BIGINT NOT NULL, 
	params_deployed BIGINT NOT NULL, 
	flops BIGINT NOT NULL, 
	fields JSON NOT NULL, 
	PRIMARY KEY (arch_id)
);
INSERT INTO "architectures" VALUES('a1-1c578cdc3754','Swin-E16x2.2.2.2-R56-P1-N10','[7, 7, 7, 7]','[true, true, true, false]',0,2,'[2, 2, 2, 2]',16,579096,646056,100478720,'{"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "windows": [7, 7, 7, 7], "shifts": [true, true, true, false], "br": false, "image_size": 56, "patch_size": 1, "channels": 3, "num_classes": 10, "mlp_ratio": 4.0, "v2": false, "pretrained_windows": [0, 0, 0, 0]}');
INSERT INTO "architectures" VALUES('a1-6b1d01d92253','Swin-E8x2.2.2.2-W2.2.2.2-H2.4.8.16-R32-P2-C1-N16','[2, 2, 2, 2]','[true, true, true, false]',0,2,'[2, 2, 2, 2]',8,146644,147064,1741824,'{"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16], "windows": [2, 2, 2, 2], "shifts": [true, true, true, false], "br": false, "image_size": 32, "patch_size": 2, "channels": 1, "num_classes": 16, "mlp_ratio": 4.0, "v2": false, "pretrained_windows": [0, 0, 0, 0]}');
INSERT INTO "architectures" VALUES('a1-81c29125c669','Swin-E16x2.2.2.2-W14.7.7.7-R56-P1-N10','[14, 7, 7, 7]','[true, true, true, false]',0,2,'[2, 2, 2, 2]',16,580216,718086,129982208,'{"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "windows": [14, 7, 7, 7], "shifts": [true, true, true, false], "br": false, "image_size": 56, "patch_size": 1, "channels": 3, "num_classes": 10, "mlp_ratio": 4.0, "v2": false, "pretrained_windows": [0, 0, 0, 0]}');
INSERT INTO "architectures" VALUES('a1-42aca7c8148b','Swin-E8x2.2.2.2-W4.2.2.2-H2.4.8.16-R32-P2-C1-N16','[4, 2, 2, 2]','[true, true, true, false]',0,2,'[2, 2, 2, 2]',8,146804,148024,1840128,'{"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16], "windows": [4, 2, 2, 2], "shifts": [true, true, true, false], "br": false, "image_size": 32, "patch_size": 2, "channels": 1, "num_classes": 16, "mlp_ratio": 4.0, "v2": false, "pretrained_windows": [0, 0, 0, 0]}');
INSERT INTO "architectures" VALUES('a1-f9dac97f22f2','Swin-E16x2.2.2.2-W14.7.7.7-BR-R56-P1-N10','[14, 7, 7, 7]','[true, true, true, false]',1,2,'[2, 2, 2, 2]',16,580216,718086,129982208,'{"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "windows": [14, 7, 7, 7], "shifts": [true, true, true, false], "br": true, "image_size": 56, "patch_size": 1, "channels": 3, "num_classes": 10, "mlp_ratio": 4.0, "v2": false, "pretrained_windows": [0, 0, 0, 0]}');
INSERT INTO "architectures" VALUES('a1-7555f587678d','Swin-E8x2.2.2.2-W4.2.2.2-BR-H2.4.8.16-R32-P2-C1-N16','[4, 2, 2, 2]','[true, true, true, false]',1,2,'[2, 2, 2, 2]',8,146804,148024,1840128,'{"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16], "windows": [4, 2, 2, 2], "shifts": [true, true, true, false], "br": true, "image_size": 32, "patch_size": 2, "channels": 1, "num_classes": 16, "mlp_ratio": 4.0, "v2": false, "pretrained_windows": [0, 0, 0, 0]}');
INSERT INTO "architectures" VALUES('a1-c0ee87fd9985','Swin-E16x2.2.2.2-BR-R56-P1-N10','[7, 7, 7, 7]','[true, true, true, false]',1,2,'[2, 2, 2, 2]',16,579096,646056,100478720,'{"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "windows": [7, 7, 7, 7], "shifts": [true, true, true, false], "br": true, "image_size": 56, "patch_size": 1, "channels": 3, "num_classes": 10, "mlp_ratio": 4.0, "v2": false, "pretrained_windows": [0, 0, 0, 0]}');
CREATE TABLE explorer_version (
	version INTEGER NOT NULL
);
INSERT INTO "explorer_version" VALUES(4);
CREATE TABLE failures (
	"key" VARCHAR(160) NOT NULL, 
	arch_id VARCHAR(32) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	message TEXT NOT NULL, 
	failed_at VARCHAR(32) NOT NULL, attempts INTEGER DEFAULT 1 NOT NULL, 
	PRIMARY KEY ("key"), 
	FOREIGN KEY(arch_id) REFERENCES architectures (arch_id)
);
INSERT INTO "failures" VALUES('latency:a1-c0ee87fd9985/t1-8b9273e20e86','a1-c0ee87fd9985','timeout','not measured within 600 s','2026-11-21T10:00:00+00:00',1);
INSERT INTO "failures" VALUES('score:a1-1c578cdc3754/r1-93bce46953f9/d1-eb9513f8f357/2/7','a1-1c578cdc3754','diverged','diverged: the loss is nan at step 37 (epoch 1, seed 7)','2026-11-22T17:00:00+00:00',1);
INSERT INTO "failures" VALUES('score:a1-1c578cdc3754/r1-93bce46953f9/d1-eb9513f8f357/2/8','a1-1c578cdc3754','diverged','diverged: the output is not finite after step 66 (epoch 2, seed 8)','2026-11-22T17:00:00+00:00',1);
CREATE TABLE fronts (
	study VARCHAR(200) NOT NULL, 
	num_trials INTEGER NOT NULL, 
	arch_ids JSON NOT NULL, 
	hypervolume FLOAT NOT NULL, 
	reference_ms FLOAT NOT NULL, 
	PRIMARY KEY (study, num_trials), 
	FOREIGN KEY(study) REFERENCES searches (name) ON DELETE CASCADE
);
INSERT INTO "fronts" VALUES('old',1,'["a1-1c578cdc3754"]',0.05,4.94402410040493123233e+01);
CREATE TABLE latencies (
	arch_id VARCHAR(32) NOT NULL, 
	target_id VARCHAR(32) NOT NULL, 
	latency_ms FLOAT NOT NULL, 
	p95_ms FLOAT NOT NULL, 
	min_ms FLOAT NOT NULL, 
	cv FLOAT NOT NULL, 
	num_samples INTEGER NOT NULL, 
	window_medians_ms JSON NOT NULL, 
	is_stable BOOLEAN NOT NULL, 
	prepare_s FLOAT NOT NULL, 
	measure_s FLOAT NOT NULL, 
	environment JSON NOT NULL, 
	measured_at VARCHAR(32) NOT NULL, 
	invalid TEXT DEFAULT '' NOT NULL, 
	details JSON DEFAULT '{}' NOT NULL, 
	PRIMARY KEY (arch_id, target_id), 
	FOREIGN KEY(arch_id) REFERENCES architectures (arch_id), 
	FOREIGN KEY(target_id) REFERENCES targets (target_id)
);
INSERT INTO "latencies" VALUES('a1-1c578cdc3754','t1-8b9273e20e86',2.47201205020246561616e+01,3.28600266508146887645e+01,2.43633010031771846115e+01,1.08428470780338973011e-01,18,'[24.688720994163305, 24.677199999132426, 24.616899998363806, 24.858800497895572, 24.99965999959386, 25.202856504620286, 25.62761100125499, 24.742056499235332, 27.345187500031898, 29.252583499328466, 24.545453499740688, 24.57885200055898]',0,5.48568338999757543206e-01,7.84193769199191592633e+00,'{"cpu": "Some CPU", "cpu_cores": 2, "cpu_threads": 1, "system": "Linux", "python": "3.11.7", "load_average": [2.84, 2.06, 1.4], "versions": {"torch": "2.15.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.4.6", "swinexplore": "0.1.0"}, "foreign_cpus": 0.502, "frequency_mhz": {"min": 2500.0, "median": 2500.0, "max": 2500.0}, "attempts": 3, "attempts_ms": [24.720120502024656, 31.674104498961242, 32.093084999360144], "backend": {"provider": "CPUExecutionProvider", "timed_by": "host clock"}}','2026-11-21T13:43:53+00:00','','{"remarks": [], "p90_ms": 30.707834098575407, "p99_ms": 33.08258453318558, "isolated_ms": 24.720120502024656, "no_graph_ms": null, "images_per_s": 37.56105251624744, "engine_bytes": null, "build_s": 0.106112949004455, "peak_memory_bytes": null, "reference_id": "a1-1c578cdc3754", "reference_ms": 24.720120502024656, "reference_drift": null, "rebuild_medians_ms": []}');
INSERT INTO "latencies" VALUES('a1-81c29125c669','t1-8b9273e20e86',4.76900504982040729373e+01,4.81063618975895224139e+01,4.73438550034188665449e+01,5.52378480482628320819e-03,12,'[39.29665950272465, 47.50840449560201, 47.78528999668197, 47.724952000862686]',1,5.10137990997463930398e-01,1.34352600529964547602e+01,'{"cpu": "Some CPU", "cpu_cores": 2, "cpu_threads": 1, "system": "Linux", "python": "3.11.7", "load_average": [2.81, 2.14, 1.45], "versions": {"torch": "2.15.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.4.6", "swinexplore": "0.1.0"}, "foreign_cpus": 0.496, "frequency_mhz": {"min": 2500.0, "median": 2500.0, "max": 2500.0}, "attempts": 3, "attempts_ms": [47.020299494761275, 40.09134299849393, 47.69005049820407], "backend": {"provider": "CPUExecutionProvider", "timed_by": "host clock"}}','2026-11-21T13:44:16+00:00','','{"remarks": [], "p90_ms": 47.90125829749741, "p99_ms": 48.299065177779994, "isolated_ms": 47.69005049820407, "no_graph_ms": null, "images_per_s": 20.972790813802995, "engine_bytes": null, "build_s": 0.10033407500304747, "peak_memory_bytes": null, "reference_id": "a1-1c578cdc3754", "reference_ms": 24.92350749889738, "reference_drift": null, "rebuild_medians_ms": []}');
INSERT INTO "latencies" VALUES('a1-f9dac97f22f2','t1-8b9273e20e86',3.18691380016389302909e+01,3.22712333989329636096e+01,3.14586590029648505151e+01,8.12735170330204127753e-03,15,'[31.857955997111276, 32.23975300352322, 31.68346700113034, 31.86913800163893, 31.932675999996718]',1,7.12643949002085719257e-01,1.1908638267996138893e+01,'{"cpu": "Some CPU", "cpu_cores": 2, "cpu_threads": 1, "system": "Linux", "python": "3.11.7", "load_average": [2.82, 2.15, 1.46], "versions": {"torch": "2.15.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.4.6", "swinexplore": "0.1.0"}, "foreign_cpus": 0.499, "frequency_mhz": {"min": 2500.0, "median": 2500.0, "max": 2500.0}, "attempts": 3, "attempts_ms": [31.86913800163893, 32.11393950186903, 31.952888006344438], "backend": {"provider": "CPUExecutionProvider", "timed_by": "host clock"}}','2026-11-21T13:44:32+00:00','other processes kept 0.5 CPUs busy','{"remarks": [], "p90_ms": 32.19996420084499, "p99_ms": 32.27745387936011, "isolated_ms": 31.86913800163893, "no_graph_ms": null, "images_per_s": 31.40027537203287, "engine_bytes": null, "build_s": 0.09943231400393415, "peak_memory_bytes": null, "reference_id": "a1-1c578cdc3754", "reference_ms": 24.924209003074793, "reference_drift": null, "rebuild_medians_ms": []}');
CREATE TABLE members (
	study VARCHAR(200) NOT NULL, 
	arch_id VARCHAR(32) NOT NULL, 
	position INTEGER NOT NULL, 
	outcome VARCHAR(16) NOT NULL, 
	proxy_id VARCHAR(32) NOT NULL, 
	epochs INTEGER NOT NULL, 
	seed BIGINT NOT NULL, 
	failure_key VARCHAR(160), seeds INTEGER DEFAULT 1 NOT NULL, spent_epochs INTEGER DEFAULT 0 NOT NULL, spent_s FLOAT DEFAULT 0 NOT NULL, in_work VARCHAR(160) DEFAULT '' NOT NULL, 
	PRIMARY KEY (study, arch_id), 
	FOREIGN KEY(study) REFERENCES searches (name) ON DELETE CASCADE, 
	FOREIGN KEY(arch_id) REFERENCES architectures (arch_id)
);
INSERT INTO "members" VALUES('old','a1-1c578cdc3754',0,'complete','a1-6b1d01d92253',1,0,NULL,1,0,0.0,'');
INSERT INTO "members" VALUES('old','a1-81c29125c669',1,'complete','a1-42aca7c8148b',1,0,NULL,1,0,0.0,'');
INSERT INTO "members" VALUES('old','a1-f9dac97f22f2',2,'complete','a1-7555f587678d',1,0,NULL,1,0,0.0,'');
INSERT INTO "members" VALUES('old','a1-c0ee87fd9985',3,'failed','a1-6b1d01d92253',1,0,'latency:a1-c0ee87fd9985/t1-8b9273e20e86',1,0,0.0,'');
CREATE TABLE recipes (
	recipe_id VARCHAR(32) NOT NULL, 
	fields JSON NOT NULL, 
	PRIMARY KEY (recipe_id)
);
INSERT INTO "recipes" VALUES('r1-93bce46953f9','{"epochs": 1, "batch_size": 32, "accumulate": 1, "lr": 0.001, "min_lr": 1e-05, "warmup": 0.1, "weight_decay": 0.05, "label_smoothing": 0.1, "drop_path": 0.0, "grad_clip": 5.0, "flip": false, "crop_padding": 0.0625, "train_images": 64, "eval_images": 64, "precision": "mixed"}');
CREATE TABLE scores (
	arch_id VARCHAR(32) NOT NULL, 
	recipe_id VARCHAR(32) NOT NULL, 
	data_id VARCHAR(32) NOT NULL, 
	epochs INTEGER NOT NULL, 
	seed BIGINT NOT NULL, 
	accuracy FLOAT NOT NULL, 
	train_s FLOAT NOT NULL, 
	curve JSON NOT NULL, 
	environment JSON NOT NULL, 
	trained_at VARCHAR(32) NOT NULL, 
	PRIMARY KEY (arch_id, recipe_id, data_id, epochs, seed), 
	FOREIGN KEY(arch_id) REFERENCES architectures (arch_id), 
	FOREIGN KEY(recipe_id) REFERENCES recipes (recipe_id)
);
INSERT INTO "scores" VALUES('a1-6b1d01d92253','r1-93bce46953f9','d1-eb9513f8f357',1,0,0.109375,6.81671812999411486089e-01,'[{"epoch": 1, "loss": 2.7774462699890137, "accuracy": 0.109375, "seconds": 0.6816718129994115}]','{"cpu": "Some CPU", "cpu_cores": 2, "cpu_threads": 1, "system": "Linux", "python": "3.11.7", "load_average": [2.94, 2.13, 1.43], "versions": {"torch": "2.15.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.4.6", "swinexplore": "0.1.0"}, "device": "cpu"}','2026-11-21T13:43:58+00:00');
INSERT INTO "scores" VALUES('a1-42aca7c8148b','r1-93bce46953f9','d1-eb9513f8f357',1,0,0.078125,7.20126072999846655875e-01,'[{"epoch": 1, "loss": 2.7921228408813477, "accuracy": 0.078125, "seconds": 0.7201260729998467}]','{"cpu": "Some CPU", "cpu_cores": 2, "cpu_threads": 1, "system": "Linux", "python": "3.11.7", "load_average": [2.81, 2.14, 1.45], "versions": {"torch": "2.15.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.4.6", "swinexplore": "0.1.0"}, "device": "cpu"}','2026-11-21T13:44:16+00:00');
INSERT INTO "scores" VALUES('a1-7555f587678d','r1-93bce46953f9','d1-eb9513f8f357',1,0,0.0625,4.98484660005487967282e-01,'[{"epoch": 1, "loss": 2.7853312492370605, "accuracy": 0.0625, "seconds": 0.49848466000548797}]','{"cpu": "Some CPU", "cpu_cores": 2, "cpu_threads": 1, "system": "Linux", "python": "3.11.7", "load_average": [2.72, 2.16, 1.47], "versions": {"torch": "2.15.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.4.6", "swinexplore": "0.1.0"}, "device": "cpu"}','2026-11-21T13:44:33+00:00');
CREATE TABLE searches (
	name VARCHAR(200) NOT NULL, 
	identity JSON NOT NULL, 
	target_id VARCHAR(32) NOT NULL, 
	recipe_id VARCHAR(32) NOT NULL, 
	data_id VARCHAR(32) NOT NULL, 
	base_id VARCHAR(32) NOT NULL, 
	seed BIGINT NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	used_at VARCHAR(32) NOT NULL, settings JSON DEFAULT '{}' NOT NULL, 
	PRIMARY KEY (name), 
	FOREIGN KEY(target_id) REFERENCES targets (target_id), 
	FOREIGN KEY(recipe_id) REFERENCES recipes (recipe_id), 
	FOREIGN KEY(base_id) REFERENCES architectures (arch_id)
);
INSERT INTO "searches" VALUES('old','{"space": {"base": "Swin-E16x2.2.2.2-R56-P1-N10", "windows": {"stage1": [7, 14], "stage2": [7], "stage3": [7], "stage4": [7]}, "shifts": {"stage1": [true], "stage2": [true], "stage3": [true], "stage4": [false]}, "br": [false, true], "depth3": [2]}, "proxy": {"from_unit": 7, "unit": 2, "embed_dim": 8, "head_dim": 4, "patch_size": 2}, "target": {"backend": "onnxruntime", "backend_version": "1.31.1", "precision": "fp32", "batch": 1, "image_size": 56, "device_kind": "cpu", "device": "Intel(R) Xeon(R) Processor @ 2.50GHz", "driver": "", "threads": 1, "graph_version": 2}, "recipe": {"epochs": 1, "batch_size": 32, "train_images": 64, "eval_images": 64}, "data": "d1-eb9513f8f357"}','t1-8b9273e20e86','r1-93bce46953f9','d1-eb9513f8f357','a1-1c578cdc3754',0,'2026-11-21T13:43:31.112821+00:00','2026-11-21T13:43:31.112821+00:00','{}');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'old');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',1,1);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["accuracy", "latency_ms"]');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE targets (
	target_id VARCHAR(32) NOT NULL, 
	fields JSON NOT NULL, 
	PRIMARY KEY (target_id)
);
INSERT INTO "targets" VALUES('t1-8b9273e20e86','{"backend": "onnxruntime", "backend_version": "1.31.1", "precision": "fp32", "batch": 1, "image_size": 56, "device_kind": "cpu", "device": "Intel(R) Xeon(R) Processor @ 2.50GHz", "driver": "", "threads": 1, "graph_version": 2, "options": ""}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'stage1',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["w7-shift", "w14-shift"]}}');
INSERT INTO "trial_params" VALUES(2,1,'br',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [false, true]}}');
INSERT INTO "trial_params" VALUES(3,2,'stage1',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["w7-shift", "w14-shift"]}}');
INSERT INTO "trial_params" VALUES(4,2,'br',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [false, true]}}');
INSERT INTO "trial_params" VALUES(5,3,'stage1',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": ["w7-shift", "w14-shift"]}}');
INSERT INTO "trial_params" VALUES(6,3,'br',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [false, true]}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'arch_id','"a1-1c578cdc3754"');
INSERT INTO "trial_user_attributes" VALUES(2,2,'arch_id','"a1-81c29125c669"');
INSERT INTO "trial_user_attributes" VALUES(3,3,'arch_id','"a1-f9dac97f22f2"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,0.109375,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,2.47201205020246561616e+01,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,0.078125,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,4.76900504982040729373e+01,'FINITE');
INSERT INTO "trial_values" VALUES(5,3,0,0.0625,'FINITE');
INSERT INTO "trial_values" VALUES(6,3,1,3.18691380016389302909e+01,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-21 13:43:31.609415','2026-11-21 13:43:59.017721');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-21 13:43:59.027750','2026-11-21 13:44:16.975687');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-21 13:44:16.984340','2026-11-21 13:44:33.373382');
CREATE TABLE verifications (study VARCHAR(200) NOT NULL, arch_id VARCHAR(32) NOT NULL, key VARCHAR(160) NOT NULL, fields JSON NOT NULL, verified_at VARCHAR(32) NOT NULL, PRIMARY KEY (study, arch_id, key), FOREIGN KEY(study) REFERENCES searches (name) ON DELETE CASCADE, FOREIGN KEY(arch_id) REFERENCES architectures (arch_id));
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
CREATE INDEX members_in_order ON members (study, position);
COMMIT;
