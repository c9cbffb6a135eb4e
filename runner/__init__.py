"""The program around the actors: command line, REST, gRPC, authentication, and the server process."""
