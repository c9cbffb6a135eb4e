"""Modules that run by themselves over gRPC: the verbs of ScheduleService."""

from runner.grpc.starts.schedules import ScheduleVerbs

__all__ = ["ScheduleVerbs"]
