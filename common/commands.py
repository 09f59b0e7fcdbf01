"""Commands made from settings: a field of a pydantic model is a flag, with its help and its type.

All commands of both programs are made here, so that they agree: flags are written `--max-length`
(`--max_length` is understood, too), help comes in groups and ends with examples, `--version` and
shell completion are there, and bad input ends with exit code 2 and one line per problem.

Models are loaded when their command is called: `--help` of a program does not wait for pydantic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from common.errors import InputError, Problems, problems_of
from common.suggestions import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

BAD_INPUT, INTERRUPTED = 2, 130
_YES, _NO = ("true", "yes", "on"), ("false", "no", "off")


def _kebab(token: str) -> str:
    return token.replace("_", "-")


_CONTEXT: dict[str, Any] = {
    "token_normalize_func": _kebab,
    "help_option_names": ["--help", "-h"],
    "max_content_width": 100,
}
Load = Callable[[], "type[BaseModel]"]


@contextmanager
def _told() -> Iterator[None]:
    """End the program with exit code 2 and one line per problem where the input is bad."""
    try:
        yield
    except (InputError, OSError) as error:
        told = problems_of(error)
        if told is None:
            raise
        for problem in told:
            click.echo(f"error: {problem}", err=True)
        raise SystemExit(BAD_INPUT) from error
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(INTERRUPTED) from None


class _Formatted(click.Command):
    """A command whose help ends with examples, kept as they are written."""

    examples: Sequence[str] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    for line in example.splitlines():
                        formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)


class SettingsCommand(_Formatted):
    """A command whose flags are the fields of a model.

    Args:
        name: of the command.
        load: returns the model; called when the command is.
        callback: is called with the values of the flags that were given, by key, as `flags`, and
            with the command's own parameters.
        params: the command's own parameters, which are no settings.
        examples: shown below the help.
        helps: help of fields that say something else in this command.
        without: fields that this command does not have.
        options: of `click.Command`.
    """

    def __init__(
        self,
        name: str,
        load: Load,
        callback: Callable[..., Any],
        *,
        params: Sequence[click.Parameter] = (),
        examples: Sequence[str] = (),
        helps: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
        **options: Any,
    ) -> None:
        options = {"context_settings": _CONTEXT, **options}
        super().__init__(name, callback=callback, params=list(params), **options)
        self.examples = examples
        self._load = load
        self._helps = helps or {}
        self._without = without

    @cached_property
    def model(self) -> type[BaseModel]:
        """The model of the command's settings."""
        return self._load()

    @cached_property
    def _fields(self) -> dict[str, click.Parameter]:
        from common.flags import parameters_of

        return parameters_of(self.model, self._helps, self._without)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The settings, then the command's own parameters, then `--help`."""
        return [*self._fields.values(), *super().get_params(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the command line.

        Raises:
            InputError: flags that there are not, or that stand where another one's value should
                be; one message for each.
        """
        return super().parse_args(ctx, list(self._plain(ctx, args)))

    def _plain(self, ctx: click.Context, args: Sequence[str]) -> Iterator[str]:
        """The words, with `--base.tokenizer PATH` and `--bf16 no` as click takes them."""
        flags = {
            spelling: parameter
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            for spelling in (*parameter.opts, *parameter.secondary_opts)
        }
        problems = Problems()
        words = list(args)
        while words:
            word = words.pop(0)
            flag, equals, value = word.partition("=")
            name, _, inner = flag.partition(".")
            parameter = flags.get(_kebab(name))
            if parameter is None:
                yield word
                if word == "--":
                    yield from words
                    break
                if word.startswith("--"):
                    hint = did_you_mean(_kebab(name), flags)
                    problems.add(f"{name}: there is no such option{hint}")
                continue
            switch = parameter.secondary_opts and parameter.opts[0] == _kebab(flag)
            following = value if equals else words[0] if words else None
            if switch and (following or "").lower() in (*_YES, *_NO):
                del words[: not equals]
                yes = str(following).lower() in _YES
                yield (parameter.opts if yes else parameter.secondary_opts)[0]
            elif parameter.is_flag or following is None:
                yield name if inner and not parameter.is_flag else word
            elif not equals and _kebab(following.partition("=")[0]) in flags:
                problems.add(f"{flag}: its value is missing ({following} follows)")
            else:
                del words[: not equals]
                whole = not inner or not getattr(parameter, "of_mapping", False)
                yield from (flag, following) if whole else (name, f"{inner}={following}")
        if not ctx.resilient_parsing:  # a line that is being completed may be wrong
            problems.check()

    def invoke(self, ctx: click.Context) -> Any:
        """Call the callback with the values of the flags that were given."""
        problems, flags = Problems(), dict[str, Any]()
        for key, parameter in self._fields.items():
            given = ctx.params.pop(key)
            if given not in (None, ()):
                with problems.collecting():
                    flags[key] = getattr(parameter, "value_of", _as_given)(given)
        problems.check()
        ctx.params["flags"] = flags
        return super().invoke(ctx)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command as a program of its own."""
        with _told():
            return super().main(*args, **options)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags in the groups of the model; click writes the arguments."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = getattr(parameter, "heading", "Other options")
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _as_given(words: Any) -> Any:
    return list(words) if isinstance(words, tuple) else words


def settings_command(
    load: Load, function: Callable[..., Any], name: str | None = None, **options: Any
) -> SettingsCommand:
    """A command that calls `function` with its settings; the help is the function's docstring.

    Args:
        load: returns the model of the settings.
        function: gets an instance of the model, and the command's own parameters by name.
        name: of the command; None: the function's.
        options: of `SettingsCommand`.
    """

    def call(flags: Mapping[str, Any], **own: Any) -> Any:
        from common.settings import settings

        return function(settings(load(), flags), **own)

    return SettingsCommand(
        name or _kebab(function.__name__), load, call, help=function.__doc__, **options
    )


# -- programs ----------------------------------------------------------------------------------


class Commands(_Formatted, click.Group):
    """Commands under a name of their own; a program is one."""

    def settings_command(
        self, load: Load, name: str | None = None, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that makes a function one of these commands.

        Args:
            load: returns the model of the settings.
            name: of the command; None: the function's.
            options: of `SettingsCommand`.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            self.add_command(settings_command(load, function, name, **options))
            return function

        return decorate


class Program(Commands):
    """A program of commands.

    Args:
        name: of the program.
        summary: shown above its commands.
        version: returns the version that `--version` prints.
        examples: shown below its commands.
    """

    def __init__(
        self, name: str, summary: str, version: Callable[[], str], examples: Sequence[str] = ()
    ) -> None:
        def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
            if value and not ctx.resilient_parsing:
                click.echo(f"{name} {version()}")
                ctx.exit()

        super().__init__(
            name,
            help=summary,
            no_args_is_help=True,
            params=[
                click.Option(
                    ["--version"],
                    is_flag=True,
                    expose_value=False,
                    is_eager=True,
                    callback=show,
                    help="Print the version and exit.",
                ),
            ],
            epilog="Shell completion: put eval "
            f'"$(_{name.upper()}_COMPLETE=bash_source {name})" into ~/.bashrc; of zsh and fish '
            "likewise, with zsh_source and fish_source.",
            context_settings=_CONTEXT,
        )
        self.examples = examples

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command; bad input is told in one line per problem, with exit code 2."""
        with _told():
            return super().invoke(ctx)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program; see `click.Command.main`."""
        return super().main(*args, **{"prog_name": self.name, **options})
