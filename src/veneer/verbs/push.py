"""Upload an adapter to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.errors import UserError
from veneer.family.libraries import in_one_line
from veneer.files import opens_paths
from veneer.verbs.publication import Publication, publication_of

__all__ = ["PushOptions", "Pushed", "check_repo_name", "push_adapter"]

_WORD = r"[A-Za-z0-9](?:(?:[\w]|[-.](?![-.]))*\w)?"
_REPO = re.compile(f"{_WORD}/{_WORD}", re.ASCII)
_LONGEST_REPO = 96
"""What the hub takes for a repository's name."""
_ATTRIBUTES = ".gitattributes"  # which the hub makes with a repository


@dataclass(frozen=True)
class PushOptions:
    """The options of an upload.

    Attributes:
        private: make a repository that nobody else sees; one that is there must be private already.
        revision: branch; it is made if it is not there. None: the repository's main one.
        message: of the commit.
        update: put a further commit on a repository that holds files already.
        anyway: upload although a text names a place on a machine.
    """

    private: bool = False
    revision: str | None = None
    message: str | None = None
    update: bool = False
    anyway: bool = False


@dataclass(frozen=True)
class Pushed:
    """An upload that is done.

    Attributes:
        url: page of the commit.
        publication: what was uploaded.
    """

    url: str
    publication: Publication


def _ignore(_: Publication) -> None:
    """Do nothing: the callback of whoever names none."""


@opens_paths
def push_adapter(
    place: Path,
    repo: str,
    *,
    options: PushOptions | None = None,
    dry_run: bool = False,
    callback: Callable[[Publication], None] = _ignore,
) -> Pushed | None:
    """Upload an adapter's files, its card and its pictures in one commit; never checkpoints, and no path.

    Large files are sent before the commit. If it is interrupted, the same call goes on: what has arrived is not sent
    again, and until the commit the repository shows nothing of it.

    Args:
        place: the adapter's file, or the folder of its run.
        repo: ``owner/name``.
        options: of the upload.
        dry_run: ask nothing of the hub and upload nothing.
        callback: is called with what is to be uploaded, before it is.

    Returns:
        The upload; None for a dry run.

    Raises:
        UserError: the adapter cannot be read, a text names a place on a machine, or the hub does not take it.
    """
    options = options or PushOptions()
    check_repo_name(repo)
    publication = publication_of(place)
    callback(publication)
    if dry_run:
        return None
    if publication.doubts and not options.anyway:
        remedy = "edit it, veneer adapter edit does for metadata, or upload it --anyway"
        raise UserError(publication.doubts[0], code="push.names_place", where=place, remedy=remedy)
    url = _in_one_line(repo, lambda token: _upload(repo, publication, options, token))
    return Pushed(url, publication)


def check_repo_name(repo: str) -> None:
    """Refuse what can be no repository's name.

    Raises:
        UserError: it is none.
    """
    if not _REPO.fullmatch(repo) or len(repo) > _LONGEST_REPO or repo.endswith(".git"):
        what, remedy = "is no name of a repository", "use owner/name, of letters, digits, dots, dashes and underscores"
        raise UserError(what, code="push.no_repo_name", where=repo, remedy=remedy)


def _upload(repo: str, publication: Publication, options: PushOptions, token: str) -> str:
    """Make the repository, if there is none, and commit; return the commit's page."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    api.create_repo(repo, private=options.private or None, exist_ok=True)
    _check_repo(api, repo, options)
    if options.revision is not None:
        api.create_branch(repo, branch=options.revision, exist_ok=True)
    operations = [CommitOperationAdd(file.name, file.content) for file in publication.files]
    message = options.message or "Upload adapter"
    return str(api.create_commit(repo, operations, commit_message=message, revision=options.revision).commit_url)


def _check_repo(api: Any, repo: str, options: PushOptions) -> None:
    """Refuse a repository that others see where nobody should, and one that holds something already."""
    there = api.repo_info(repo)
    if options.private and not there.private:
        remedy = "make it private on its page, or choose another name"
        raise UserError("is there already, and public", code="push.repo_is_public", where=repo, remedy=remedy)
    names = [each.rfilename for each in there.siblings or () if each.rfilename != _ATTRIBUTES]
    if names and not options.update:
        what = f"is there already, with {len(names)} file{'s' * (len(names) != 1)}, such as {names[0]}"
        remedy = "choose another name, or add a commit to it with --update"
        raise UserError(what, code="push.name_taken", where=repo, remedy=remedy)


def _in_one_line(repo: str, work: Callable[[str], str]) -> str:
    """Do something at the hub; whatever keeps it from it is one line that says what to do, without the token."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        remedy = "log in with: hf auth login, or set HF_TOKEN to one of https://huggingface.co/settings/tokens"
        raise UserError("there is no token of the hub here", code="push.no_token", where=repo, remedy=remedy)
    try:
        return work(token)
    except UserError:
        raise
    except Exception as error:  # the hub's library has changed the one that it asks with, and so what that raises
        raise _refused(error, repo, token) from None  # a request in the trace has the token in it


def _refused(error: Exception, repo: str, token: str) -> UserError:
    said = in_one_line(error).replace(token, "***")
    code, what, remedy = _ANSWERS.get(_status(error) or 0, ("push.failed", f"the hub did not take it ({said})", _AGAIN))
    if _status(error) is None and _is_of_network(error):
        code, what, remedy = (
            "push.no_network",
            f"the hub cannot be reached ({said})",
            f"check the network, then {_AGAIN}",
        )
    return UserError(what, code=code, where=repo, remedy=remedy)


_AGAIN = "run the same command again: what has arrived is not sent twice"
_ANSWERS = {
    401: ("push.bad_token", "the hub does not know the token", "log in again with: hf auth login"),
    403: (
        "push.no_rights",
        "the token may not write there",
        "use a name of your own, or a token with the right to write",
    ),
    404: ("push.not_found", "the hub has no such repository for this token", "check the name and the token's rights"),
    409: ("push.conflict", "something else changed it meanwhile", _AGAIN),
    412: ("push.conflict", "something else changed it meanwhile", _AGAIN),
    413: ("push.too_large", "a file is larger than the hub takes", "leave it out"),
    429: ("push.too_often", "the hub was asked too often", f"wait some minutes, then {_AGAIN}"),
}
"""What the hub's answers mean, by HTTP status."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: Exception) -> int | None:
    """Return the hub's answer that an error tells of, if it is one."""
    responses = (getattr(each, "response", None) for each in _chain(error))
    return next((each.status_code for each in responses if each is not None), None)


_NETWORK = ("Connect", "Timeout", "Network", "Offline", "Protocol", "Transport", "Connection")
"""In the names of what is raised where the hub gives no answer."""


def _is_of_network(error: Exception) -> bool:
    return any(word in kind.__name__ for each in _chain(error) for kind in type(each).__mro__ for word in _NETWORK)
