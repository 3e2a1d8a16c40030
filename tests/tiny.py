"""Settings that train in a second, and on a GPU too end in the same bytes every time."""

TINY = [
    "model.name=test_efficientnet",
    "model.weights=none",
    "image_size=32",
    "train.epochs=2",
    "train.batch_size=16",
    "train.lr=1e-2",
    "train.warmup_epochs=0",
    "train.label_smoothing=0",
    "train.deterministic=true",
    "infer.precision=fp32",
    "data.folds=2",
    "report=false",
]
