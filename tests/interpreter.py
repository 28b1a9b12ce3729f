"""Spares Triton's interpreter work that changes nothing: most of the tests' time goes to it."""

import dataclasses
from functools import cache

import triton.language as tl
from triton.runtime import interpreter


def hasten():
    leave_out_checks()
    replace_the_language_once_a_launch()
    remember_dtypes()


def leave_out_checks():
    """Integers are added and multiplied again in 64 bits, for an assertion that is not made without
    the option `debug`.
    """
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def replace_the_language_once_a_launch():
    """Every call of a device function replaces all functions of the language by the interpreter's,
    though they are until the launch ends.
    """
    launch, replace, done = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def launch_anew(self, *args, **kwargs):
        done.clear()  # the launch before has put back what it replaced
        return launch(self, *args, **kwargs)

    @cache
    def seen_by(function):
        """Which modules of the language: of those, functions are replaced."""
        seen = function.__globals__.values()
        return {module.__name__ for module in (tl, tl.core) if any(v is module for v in seen)}

    def replace_once(function):
        if seen_by(function) <= done:
            return None  # what puts back is asked for by the launch, whose call is the first
        done.update(seen_by(function))
        return replace(function)

    interpreter.GridExecutor.__call__ = launch_anew
    interpreter._patch_lang = replace_once


def remember_dtypes():
    """A table of all of them is made to look up one."""
    find, known = interpreter._get_np_dtype, {}

    def remembered(dtype):
        scalar = dtype.scalar
        if scalar.name not in known:
            known[scalar.name] = find(scalar)
        return known[scalar.name]

    interpreter._get_np_dtype = remembered
