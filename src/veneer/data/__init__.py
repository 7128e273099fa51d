"""From folders of pictures to batches: listing, looking over, decoding, and drawing in a keyed order."""
