"""Screenshots of pages, as a browser shows them."""
