"""The doors and the switch: command line, REST, websocket, authentication."""
