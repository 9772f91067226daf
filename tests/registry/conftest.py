"""The conformance suite's own assertions are rewritten, as those of a test module are."""

import pytest

pytest.register_assert_rewrite("tests.registry.conformance")
