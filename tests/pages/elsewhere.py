"""The commands of pages that no test here runs: the test that does, or why none can."""

from __future__ import annotations

from tests.pages.running import Elsewhere, Page
from tests.test_commands_in_documents import CONTROL, ELSEWHERE, LANGUAGE

README = Elsewhere(
    "tests/test_commands_in_documents.py::test_the_readmes_commands_for_control_run_in_their_order_in_an_empty_folder, "
    "tests/test_commands_in_documents.py::test_the_readmes_commands_for_language_run_in_an_empty_folder, "
    "tests/end_to_end/test_jobs.py, tests/deploy/test_trackers.py"
)
TUTORIAL = Elsewhere("tests/test_site.py::test_a_tutorials_commands_run_in_their_order_in_an_empty_folder")
STOPWATCH = Elsewhere(
    "tests/test_stopwatch.py::test_the_commands_for_control_run_as_they_stand, "
    "tests/test_stopwatch.py::test_the_commands_for_language_run_as_they_stand"
)
DEVELOPERS = Elsewhere("a step of .github/workflows/check.yml, or of developers alone; targets: tests/test_documents.py")
TESTS = Elsewhere("runs tests of this suite")
IMAGES = Elsewhere("needs Docker and a registry; the steps of the build: tests/deploy/test_images.py")
CLUSTER = Elsewhere("needs a Kubernetes cluster; what it is given: tests/deploy/test_manifests.py")
SECRETS = Elsewhere("tests/deploy/test_manifests_services.py::test_secrets_are_made_once_for_nobody_else_to_read")

# Pages all of whose commands are run by a test that reads them from the page, as this one does.
WHOLE = {
    "docs/start/tutorial-control.md": TUTORIAL,
    "docs/start/tutorial-language.md": TUTORIAL,
    "docs/start/stopwatch.md": STOPWATCH,
}
NOT_HERE = {
    "README.md": Page(
        {
            **dict.fromkeys([*CONTROL, *LANGUAGE, *ELSEWHERE], README),
            "make run": Elsewhere(
                "tests/pages/test_commands.py::test_make_run_is_the_command_that_the_readme_shows; "
                "tests/test_commands_in_documents.py::test_the_readmes_commands_for_language_run_in_an_empty_folder"
            ),
            "make test": TESTS,
        }
    ),
    "CONTRIBUTING.md": Page(
        {
            **dict.fromkeys(
                [
                    *("make setup", ".venv/bin/pre-commit install", "make check", "make test", "make test-long"),
                    *("make format", "make generate", "make site", "make prove", "make advisories"),
                ],
                DEVELOPERS,
            ),
            **dict.fromkeys(
                [
                    "export OMP_NUM_THREADS=1",
                    ".venv/bin/python -m pytest tests/learners/test_returns.py",
                    ".venv/bin/python -m pytest tests/learners/test_returns.py -k truncation -x",
                    ".venv/bin/python -m pytest -m prove tests/end_to_end/test_equality.py",
                    ".venv/bin/python -m pytest -m gpu",
                ],
                TESTS,
            ),
        }
    ),
}
