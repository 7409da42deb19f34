"""The command line, as tests call it."""

from click.testing import CliRunner

from hope_eval.cli import main


def hope_eval(*arguments, code: int = 0):
    """Run the command line in this process and return its result; a traceback fails the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result
