"""Report a run: one page, ``report.html``, and the same as data, ``report.json``."""
