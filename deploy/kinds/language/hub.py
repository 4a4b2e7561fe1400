"""An exported directory on the Hugging Face hub. The only file that uploads anything."""

from __future__ import annotations

from pathlib import Path

from rollcall.cluster.errors import BadInput


def push(directory: Path, repository: str, *, public: bool) -> str:
    """Uploads a directory as a model repository, which is made if there is none. Returns its address.

    Raises:
      BadInput: when the hub cannot be reached, nobody is logged in, or it refuses; the directory is whole.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise BadInput("--push needs the package huggingface_hub: pip install 'rollcall-rl[lm-cpu]'") from None
    disable_progress_bars()
    api = HfApi()
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=directory, commit_message="Export from Rollcall")
    except HFValidationError as error:
        raise BadInput(f"--push = {repository!r}: no name of a repository: {_line(error)}") from None
    except LocalTokenNotFoundError:
        raise BadInput(_later("nobody is logged in: hf auth login, or set HF_TOKEN", directory, repository)) from None
    except HfHubHTTPError as error:
        raise BadInput(_later(f"the hub refuses: {_line(error)}", directory, repository)) from None
    except (OSError, ConnectionError) as error:
        raise BadInput(_later(f"the hub cannot be reached: {_line(error)}", directory, repository)) from None
    except Exception as error:  # of whatever client it uses for HTTP
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise BadInput(_later(f"the hub cannot be reached: {_line(error)}", directory, repository)) from None
    return str(made)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _later(why: str, directory: Path, repository: str) -> str:
    return f"--push = {repository!r}: {why}; the export is in {directory}: hf upload {repository} {directory}"
