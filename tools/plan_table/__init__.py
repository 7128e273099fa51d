"""What each published base takes to train, as a table of docs/families.md."""
