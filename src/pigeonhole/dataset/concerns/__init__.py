"""Messages with several concerns, composed from those of tickets (README.md beside this file)."""
