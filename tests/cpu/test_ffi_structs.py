"""The tables of XLA's structures, against the header of the installed jaxlib and changed ones."""

import pathlib
import re

import jax
import pytest

from pinsage_jax.cpu import ffi_structs

# What XLA FFI 0.3 calls the structure that 0.4 calls XLA_FFI_InternalExtension.
OLD_NAME, NEW_NAME = "XLA_FFI_Extension_Base", "XLA_FFI_InternalExtension"


def installed_header():
    path = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=[OLD_NAME, NEW_NAME])
def header(request):
    """The installed header with the names of one version and of another."""
    return re.sub(rf"\b({OLD_NAME}|{NEW_NAME})\b", request.param, installed_header())


def test_the_installed_header_has_these_structures():
    header = installed_header()
    assert ffi_structs.check_header(header) == ""
    oldest, newest = ffi_structs.TRIED_VERSIONS
    assert oldest <= ffi_structs.interface_version(header) <= newest


@pytest.mark.parametrize("name", sorted(ffi_structs._TABLES))
def test_a_new_first_field_of_any_structure_is_noticed(name, header):
    if name == NEW_NAME and OLD_NAME in header:
        name = OLD_NAME
    changed = header.replace(f"struct {name} {{", f"struct {name} {{ int64_t added;")
    assert changed != header
    difference = ffi_structs.check_header(changed)
    # A structure inside another moves the fields of that too.
    assert re.match(r"XLA_FFI_\w+\.\w+ is at byte \d+, not at byte \d+$", difference)


def test_either_name_of_the_extension_is_read(header):
    assert ffi_structs.check_header(header) == ""
    neither = header.replace(OLD_NAME, "XLA_FFI_Newer").replace(NEW_NAME, "XLA_FFI_Newer")
    assert "is not known without" in ffi_structs.check_header(neither)


def test_what_is_missing_or_unknown_is_noticed(header):
    field = "_XLA_FFI_API_STRUCT_FIELD(XLA_FFI_ThreadPool_Schedule);"
    assert field in header
    for changed, difference in (
        (header.replace(field, ""), "XLA_FFI_Api.XLA_FFI_ThreadPool_Schedule is missing"),
        (header.replace("struct XLA_FFI_Buffer {", "struct Other {"), "not known"),
        (header.replace("XLA_FFI_ExecutionStage stage;", "Unheard stage;"), "Unheard"),
        (header.replace("XLA_FFI_Error_Code errc;", "int64_t errc;"), "has 32 bytes, not 28"),
        (header.replace("Extension_Metadata = 1", "Extension_Metadata = 2"), "is 2, not 1"),
    ):
        assert changed != header
        assert difference in ffi_structs.check_header(changed)


def test_a_field_that_comes_last_changes_nothing(header):
    # The interface grows so within a major version.
    end = "  // out\n};\n\nXLA_FFI_DEFINE_STRUCT_TRAITS(XLA_FFI_CallFrame"
    changed = header.replace(end, end.replace("};", "void* added;\n};"))
    assert changed != header and ffi_structs.check_header(changed) == ""


def test_versions():
    both = "#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 12\n"
    assert ffi_structs.interface_version(both) == (0, 12)
    assert ffi_structs.interface_version("#define XLA_FFI_API_MAJOR 0\n") is None
