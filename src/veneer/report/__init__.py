"""A run as one page: what is told, the plots, the markup."""
