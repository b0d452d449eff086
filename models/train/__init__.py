"""The scripts that made `models/emoji64`; run from the repository root, as `python -m models.train.unet --help`."""
