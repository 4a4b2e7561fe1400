"""The commands of pages that no test here runs: the test that does, or why none can."""

from __future__ import annotations

from tests.pages.running import Elsewhere, Page
from tests.test_commands_in_documents import CONTROL, ELSEWHERE, LANGUAGE

README = Elsewhere(
    "tests/test_commands_in_documents.py::test_the_readmes_commands_for_control_run_in_their_order_in_an_empty_folder, "
    "tests/test_commands_in_documents.py::test_the_readmes_commands_for_language_run_in_an_empty_folder, "
    "tests/end_to_end/test_jobs.py, tests/deploy/report/test_trackers.py"
)
TUTORIAL = Elsewhere("tests/test_site.py::test_a_tutorials_commands_run_in_their_order_in_an_empty_folder")
STOPWATCH = Elsewhere(
    "tests/test_stopwatch.py::test_the_commands_for_control_run_as_they_stand, "
    "tests/test_stopwatch.py::test_the_commands_for_language_run_as_they_stand"
)
DEVELOPERS = Elsewhere(
    "a step of .github/workflows/check.yml, or of developers alone; targets: tests/test_documents.py"
)
TESTS = Elsewhere("runs tests of this suite")
IMAGES = Elsewhere("needs Docker and a registry; the steps of the build: tests/deploy/docker/test_images.py")
CLUSTER = Elsewhere(
    "needs a Kubernetes cluster; that what it names is in the manifests: tests/pages/test_commands.py::"
    "test_what_kubectl_is_told_of_is_in_the_manifests"
)
OVERLAY = Elsewhere("tests/pages/test_fragments.py::test_the_overlay_of_the_page_is_built_and_nothing_is_wrong_with_it")
SECRETS = Elsewhere(
    "tests/deploy/tools/manifests/test_manifests_services.py::test_secrets_are_made_once_for_nobody_else_to_read"
)

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
                    ".venv/bin/python -m pytest tests/learners/maths/test_returns.py",
                    ".venv/bin/python -m pytest tests/learners/maths/test_returns.py -k truncation -x",
                    ".venv/bin/python -m pytest -m prove tests/end_to_end/test_equality.py",
                    ".venv/bin/python -m pytest -m gpu",
                ],
                TESTS,
            ),
        }
    ),
    "docs/kubernetes.md": Page(
        {
            "docker build -f deploy/docker/Dockerfile.cpu -t REGISTRY/rollcall:0.2.0 .": IMAGES,
            "docker push REGISTRY/rollcall:0.2.0": IMAGES,
            "helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0 -n kuberay-system "
            "--create-namespace": CLUSTER,
            "kubectl apply -k deploy/k8s/overlays/mine": OVERLAY,
            "deploy/k8s/secrets/make.sh": SECRETS,
            "kubectl apply --server-side -k deploy/k8s/secrets": SECRETS,
            """kubectl -n rollcall patch rayjob cartpole-ppo --type merge -p '{"spec": {"suspend": false}}'""": CLUSTER,
            "kubectl -n rollcall get rayjob cartpole-ppo -w": CLUSTER,
            "kubectl -n rollcall create job files --from cronjob/rollcall-files": CLUSTER,
            "kubectl -n rollcall exec job/files -- tar -c -C /runs cartpole-ppo | tar -x": CLUSTER,
            """kubectl -n rollcall patch raycluster rollcall --type merge -p '{"spec": {"suspend": false}}'""": CLUSTER,
            "kubectl -n rollcall port-forward service/rollcall-head-svc 8265 &": CLUSTER,
            "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=deploy/k8s/secrets/ray-token ray job submit --address "
            """http://127.0.0.1:8265 --entrypoint-resources '{"driver": 1}' --metadata-json """
            """'{"rollcall_run": "mine"}' --working-dir . -- """
            "rollcall train my_recipe.yaml name=mine metrics.host=0.0.0.0 metrics.port=9464": CLUSTER,
            "deploy/k8s/secrets/make.sh && kubectl apply --server-side -k deploy/k8s/secrets": SECRETS,
            "kubectl -n rollcall rollout restart "
            "statefulset/rollcall-redis deployment/rollcall-reward-service": CLUSTER,
        }
    ),
}
