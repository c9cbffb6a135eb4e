"""Files over gRPC: the verbs of FileService, whose uploads and downloads are streams of pieces."""

from runner.grpc.files.verbs import FileVerbs

__all__ = ["FileVerbs"]
