"""The face of the room."""
