"""Write the reference pages of docs/ from the code: configuration, events and errors."""
