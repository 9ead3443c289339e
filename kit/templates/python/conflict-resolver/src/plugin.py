"""A conflict resolver: a value is a set of lines, and siblings are merged to the union of their lines.

Verdicts must not depend on the order of the siblings, and merging a verdict again must change nothing. So the lines are sorted, and each is
there once.
"""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.plugin import ConfigIssue, Manifest
from wit_world.exports.resolver import Question, Verdict, Verdict_KeepAll, Verdict_Merged

# What the plugin calls itself. A binding by name refers to it by this name.
NAME = "@NAME@"
VERSION = "0.1.0"


class Plugin(exports.Plugin):
    def describe(self) -> Manifest:
        return Manifest(name=NAME, version=VERSION, hook="@HOOK@", deterministic=True)

    def configure(self, configuration: bytes) -> None:
        """Called once on every new instance. This plugin takes no configuration."""
        if configuration:
            raise Err([ConfigIssue(at="", problem="this plugin takes no configuration; bind it without one")])


class Resolver(exports.Resolver):
    def resolve(self, question: Question) -> Verdict:
        values = [sibling.value for sibling in question.siblings]
        # A value with a zero byte is no text. Nothing of it may be lost, so its readers get all siblings.
        if any(b"\0" in value for value in values):
            return Verdict_KeepAll()
        lines = {line for value in values for line in value.split(b"\n") if line}
        # Lines are sorted by their bytes, so that every coordinator sorts them alike.
        return Verdict_Merged(b"".join(line + b"\n" for line in sorted(lines)))

    def samples(self) -> list[bytes]:
        """The coordinator tries the laws on these before it binds the plugin."""
        return [b"a\nb\n", b"b\nc", b"\n\n", b"", b"no text\0"]
