"""What ended a command, in a sentence."""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from provla.core.errors import Interrupted, exit_code
from provla.core.files import in_words
from provla.core.ranks import launched
from provla.core.secrets import hide


@contextmanager
def explained() -> Iterator[None]:
    """Whatever ends a command says so in a sentence, and with its exit code."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        complain(explain(error))
        sys.exit(2)
    except (ValueError, OSError) as error:  # of a sweep, before or between its jobs
        complain(str(in_words(error)))
        sys.exit(exit_code(error))
    except (Interrupted, KeyboardInterrupt) as error:
        folder = "study= or hydra.sweep.dir= of a sweep, else hydra.run.dir="
        way = f"the same command with the same folder ({folder}) goes on from here"
        complain(f"{str(error) or 'interrupted'}; {way}")
        sys.exit(getattr(error, "exit_code", 130))
    except Exception as error:
        steps = traceback.extract_tb(error.__traceback__)
        said = {
            RecursionError: "the defaults lists of the configuration files go round in a circle: an option names "
            "itself, or one that names it",
            TypeError: "the option of a group is a name, such as env=none, or a list of names",
        }
        if type(error) in said and any(step.name == "_create_defaults_tree_impl" for step in steps):
            complain(said[type(error)])
            sys.exit(2)
        print(hide(traceback.format_exc()), file=sys.stderr)
        sys.exit(1)


def complain(message: str) -> None:
    """One message on stderr, without secrets."""
    rank = "" if launched().leads else f"rank {launched().rank}: "
    print(f"{rank}error: {hide(message)}", file=sys.stderr)


def explain(error: Exception) -> str:
    """A composition error in the user's terms: what was found, what is valid."""
    text = str(error).strip()
    if isinstance(error, YAMLError):
        return f"a configuration file is no YAML that can be read: {text}"
    if said := _misread(text):
        return said
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        return _unknown(match[1] or match[2], error)
    if match := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\s+(.*)", text, re.DOTALL):
        options = ", ".join(
            line.strip()
            for line in match[3].splitlines()
            if line.strip() and "=" not in line and "Config search path" not in line
        )
        group, _, option = match[1].rpartition("/")
        return f"unknown option {group}={option}; valid: {options}"
    if match := re.search(r"Error merging override \+*([^=\s]+)=(.*)", text, re.DOTALL):
        return (
            f"{match[1]}={match[2]} cannot be merged with what a configuration file gives for {match[1]} "
            f"({str(error.__cause__ or error).splitlines()[0]}); to replace it: ~{match[1]} '+{match[1]}={match[2]}'"
        )
    if match := re.match(r"ValueError raised while resolving interpolation: (.*)", text):
        return match[1]
    place = re.search(r"full_key: (\S+)", text)
    where = place[1] if place else "a key"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = place[1] if place else match[1]
        return f"{key} has no value; give {key}=…"
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return (
            f"{where} takes its value from {match[1]}, which this {match[1].partition('.')[0]} does not have; choose "
            f"another one, or set {where} itself"
        )
    if "Recursive interpolation" in text:
        return (
            f"{where} takes its value from itself, by a circle; choose options that fit together, or set {where} itself"
        )
    return text


def _misread(text: str) -> str | None:
    """What is wrong with the form of an override."""
    if text.startswith("Could not override ''"):
        return "an override has a key: give key=value"
    if match := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        return (
            f"this command chooses no option of {match[1]} (--help lists those it chooses); where it changes a run's "
            f"own, give {match[1]}.<key>=<value>"
        )
    if match := re.match(r"Error parsing override '(.*)'\s+missing EQUAL at '<EOF>'", text):
        return f"{match[1]} is no override; give {match[1]}=<value>"
    if match := re.search(r"LexerNoViableAltException: (.*)", text):
        return f"{match[1]} cannot be read; a key has letters, digits, _ and . alone"
    if match := re.match(r"(?:Error parsing override '(.*)'\s+)?(.*)\s+See \S+/override_grammar/", text):
        why = match[2].partition(" expecting {")[0]
        return f"{match[1] or 'an override'} cannot be read ({why}); text with = , : or brackets wants quotes: \\'…\\'"
    if match := re.match(r"(Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        key, _, value = match[2].partition("=")
        listed = f"; a list is {key}=[{value}]" if match[1].startswith("A") else ""
        return f"{match[2]}: several values are a sweep, which -m starts{listed}"
    if match := re.match(r"Could not delete from config\. '(.*)' does not exist", text):
        return f"~{match[1]}: there is no {match[1]} to leave out; --cfg job shows what there is"
    if match := re.match(r"Multiple values for (\S+)\. To override a value use 'override \S+: (.*)'", text):
        return f"{match[1]} has an option already; give {match[1]}={match[2]}, without a +"
    if match := re.match(r"Could not append to config\. An item is already at '(.*)'", text):
        return f"{match[1]} has a value already; give {match[1]}=…, without a +"
    if match := re.search(r"Could not load '(\w+)/([^']+)'", text):
        return f"unknown option {match[1]}={match[2]}; --help lists the options"
    return None


def _unknown(key: str, error: BaseException | None) -> str:
    """A wrong key, and those beside it in what was composed, the likeliest first."""
    while error and not isinstance(getattr(error, "parent_node", None), DictConfig):
        error = error.__cause__
    if error is None:
        return f"unknown key {key!r}"
    key = getattr(error, "full_key", None) or key  # of env={a:1}, env.a
    parent, _, last = key.rpartition(".")
    keys = [str(k) for k in error.parent_node if not str(k).startswith("_") and k != "hydra"]  # type: ignore[attr-defined]
    close = difflib.get_close_matches(last, keys, 1)
    hint = f" did you mean {parent + '.' if parent else ''}{close[0]}?" if close else ""
    return f"unknown key {key!r};{hint} valid here: {', '.join(keys)}" if keys else f"unknown key {key!r}"
