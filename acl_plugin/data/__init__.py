"""Images, datasets, batches and augmentations."""
