"""Commands for authors and callers of modules: typed functions, tools, a way back, a module from a plain script."""

from runner.cli.authors.agents import tools
from runner.cli.authors.commands import client_commands, rollback
from runner.cli.authors.schema import modules_schema
from runner.cli.authors.script import Script, read_script, write_script

__all__ = ["Script", "client_commands", "modules_schema", "read_script", "rollback", "tools", "write_script"]
