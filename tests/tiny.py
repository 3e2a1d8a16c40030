"""Settings that train in a second."""

TINY = [
    "model.name=test_efficientnet",
    "model.weights=none",
    "image_size=32",
    "train.epochs=2",
    "train.batch_size=16",
    "train.lr=1e-2",
    "train.warmup_epochs=0",
    "train.label_smoothing=0",
    "data.folds=2",
]
