"""Services behind the server's routes. Nothing here knows a web framework."""
