"""Images, labels and masks: reading, checking, and the stream of training batches."""
