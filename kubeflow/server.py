"""A Kubeflow Pipelines server: uploads, runs, schedules.

Speaks API v2beta1 through `kfp_server_api`, the client that KFP generates for its server.
`kfp.Client` above it is not used: it takes a namespace and cookies from a file in the home folder,
asks an unreachable host five times, 5 s apart, with a traceback each, and prints links of its own.

What the server does and refuses was read in kubeflow/pipelines, backend/src/apiserver.
"""

import contextlib
import datetime
import functools
import json
import re
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ServerError
from ..serving.token_file import read_token
from .spec import Spec

_TIMEOUT = (10, 60)  # seconds: to connect, to answer
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")  # the server's own rule
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}


@dataclass(frozen=True)
class Version:
    """A pipeline's version on a server; `new` if it was uploaded just now."""

    pipeline_id: str
    version_id: str
    name: str
    new: bool


class Server:
    """Kubeflow Pipelines at one address. The constructor asks it whether it is there.

    Args:
        host: its address, where the UI answers, with a path if it has one. Without a scheme,
            http:// is taken for this machine (a port-forward), https:// for any other, so that no
            token travels in the clear.
        token: sent as `Authorization: Bearer TOKEN`.
        token_file: a file with the token instead, read anew for each call: Kubernetes renews it.
        ca: a PEM file of who signed the server's certificate; else the public authorities.
        namespace: whose runs and pipelines these are, where Kubeflow has several users.

    Raises:
        ConfigError: an argument cannot be used.
        ServerError: no answer, or not Kubeflow Pipelines, or not its API v2beta1.
    """

    def __init__(
        self,
        host: str,
        *,
        token: str = "",
        token_file: Path | None = None,
        ca: Path | None = None,
        namespace: str = "",
    ) -> None:
        import kfp_server_api as kfp
        import urllib3

        self.host, self.namespace = full_address(host), namespace
        settings = kfp.Configuration(host=self.host)
        # Tried again only where that is said, in `watch`: a lost answer to a POST may mean that
        # the run exists.
        settings.retries = urllib3.Retry(total=3, connect=0, read=0, status=0, other=0)
        settings.ssl_ca_cert = _readable(ca)
        if token or token_file:
            _authorize(settings, token, token_file)
        self._client = kfp.ApiClient(settings)
        self._experiments = kfp.ExperimentServiceApi(self._client)
        self._pipelines = kfp.PipelineServiceApi(self._client)
        self._uploads = kfp.PipelineUploadServiceApi(self._client)
        self._runs = kfp.RunServiceApi(self._client)
        self._schedules = kfp.RecurringRunServiceApi(self._client)
        self._check(kfp.HealthzServiceApi(self._client))

    def _check(self, health: Any) -> None:
        try:
            answer = self._call(health.get_healthz)
        except ServerError as error:
            if error.code not in ("NOT_FOUND", "UNIMPLEMENTED"):
                raise
            if not self._speaks_v1():
                if error.code == "UNIMPLEMENTED":
                    raise
                raise self._stranger("nothing is found at the API's path") from None
            raise ServerError(
                "UNIMPLEMENTED",
                f"{self.host}: Kubeflow Pipelines there speaks the API v1beta1 alone; v2beta1 is "
                "needed, which it has since 2.0. Have it upgraded.",
            ) from None
        if not {"commit_sha", "tag_name", "multi_user"} & set(answer):
            raise self._stranger("something else answers")
        if answer.get("multi_user") and not self.namespace:
            raise ConfigError(
                f"{self.host}: this Kubeflow has several users; say whose pipelines these are "
                "with --namespace."
            )

    def _speaks_v1(self) -> bool:
        call = functools.partial(
            self._client.call_api, "/apis/v1beta1/healthz", "GET", auth_settings=["Bearer"]
        )
        try:
            self._call(call)
        except ServerError:
            return False
        return True

    def experiment(self, name: str, *, create: bool) -> str:
        """The id of an experiment.

        Raises:
            ConfigError: it is archived, or there is none and it should not be created.
            ServerError: the server refused.
        """
        where = {"namespace": self.namespace}
        found = self._call(
            self._experiments.list_experiments, filter=_equal("display_name", name), **where
        ).get("experiments", [])
        # The server's comparison may not tell capitals apart.
        for one in found:
            if one.get("display_name") == name:
                if one.get("storage_state") == "ARCHIVED":
                    # The server would take the run, and nobody would see it in the list.
                    raise ConfigError(
                        f'{self.host}: the experiment "{name}" is archived; restore it there, or '
                        "name another with --experiment."
                    )
                return str(one["experiment_id"])
        if not create:
            known = self._call(
                self._experiments.list_experiments, page_size=50, sort_by="created_at desc", **where
            ).get("experiments", [])
            names = ", ".join(one.get("display_name", "") for one in known) or "none"
            raise ConfigError(f'{self.host}: no experiment "{name}". There is: {names}.')
        body = {"display_name": name, **({"namespace": self.namespace} if self.namespace else {})}
        return str(self._call(self._experiments.create_experiment, body)["experiment_id"])

    def upload(self, spec: Spec) -> Version:
        """Upload a pipeline, or a new version of it; an identical one that is there is taken.

        Its description holds the content's SHA-256, by which it is found again.

        Raises:
            ServerError: the server refused.
        """
        mark = f"espalier sha256:{spec.digest}"
        pipeline = self._pipeline(spec.name)
        if pipeline and (same := self._version(pipeline, _equal("description", mark))):
            return Version(pipeline, *same, new=False)
        with _file(spec.text) as path:
            if not pipeline:
                if first := self._create(spec.name, path, mark):
                    return first
                pipeline = self._pipeline(spec.name)  # somebody was faster
            name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{spec.digest[:8]}"
            sent = self._call(
                self._uploads.upload_pipeline_version, path,
                name=name, description=mark, pipelineid=pipeline,
            )  # fmt: skip
        return Version(pipeline, str(sent["pipeline_version_id"]), name, new=True)

    def _create(self, name: str, path: str, mark: str) -> Version | None:
        """Pipeline and version in one call, so that a refused spec leaves nothing behind.

        The version bears the pipeline's name: so the server has it. None if there is one now.
        """
        call = self._uploads.upload_pipeline
        try:
            sent = self._call(call, path, name=name, description=mark, namespace=self.namespace)
        except ServerError as error:
            if error.code == "ALREADY_EXISTS":
                return None
            raise
        pipeline = str(sent["pipeline_id"])
        made = self._version(pipeline)
        if made is None:
            raise ServerError("INTERNAL", f"{self.host}: {name} was uploaded, but has no version.")
        return Version(pipeline, *made, new=True)

    def _pipeline(self, name: str) -> str:
        """A pipeline's id, or ""."""
        call = self._pipelines.get_pipeline_by_name
        try:
            return str(self._call(call, name, namespace=self.namespace)["pipeline_id"])
        except ServerError as error:
            if error.code == "NOT_FOUND":
                return ""
            raise

    def _version(self, pipeline: str, filter: str = "") -> tuple[str, str] | None:
        """Id and name of the newest version that the filter lets through."""
        found = self._call(
            self._pipelines.list_pipeline_versions, pipeline,
            page_size=1, sort_by="created_at desc", filter=filter,
        ).get("pipeline_versions", [])  # fmt: skip
        if not found:
            return None
        return str(found[0]["pipeline_version_id"]), str(found[0].get("display_name", ""))

    def run(self, spec: Spec, version: Version, *, experiment: str, root: str = "") -> str:
        """Create a run and return its id.

        Args:
            spec: what runs.
            version: as it was uploaded.
            experiment: its id.
            root: where artifacts go; else the spec's own, which the server does not look at.

        Raises:
            ServerError: the server refused.
        """
        body = self._job(spec, version, experiment, root)
        body["display_name"] += time.strftime("-%Y%m%d-%H%M%S", time.gmtime())
        try:
            return str(self._call(self._runs.create_run, body)["run_id"])
        except ServerError as error:
            if error.code != "UNAVAILABLE":
                raise
            raise ServerError(
                error.code,
                f"{error} The run may be there all the same: look with `espalier runs` for "
                f"{body['display_name']}.",
            ) from None

    def schedule(
        self, spec: Spec, version: Version, cron: str, *, experiment: str, root: str = ""
    ) -> tuple[str, int]:
        """Create a recurring run: its id, and how many of the same name there were already.

        One run at a time, since each may publish; what was missed while the cluster was down is
        not made up for.

        Args:
            spec: what runs.
            version: as it was uploaded.
            cron: in the server's form; see `six_fields`.
            experiment: its id.
            root: as in `run`.

        Raises:
            ServerError: the server refused.
        """
        before = self._call(
            self._schedules.list_recurring_runs,
            experiment_id=experiment,
            filter=_equal("display_name", spec.name),
        ).get("recurringRuns", [])  # fmt: skip  (the one name on this API that is not snake_case)
        body = {
            **self._job(spec, version, experiment, root),
            "trigger": {"cron_schedule": {"cron": cron}},
            "mode": "ENABLE",
            "max_concurrency": "1",
            "no_catchup": True,
        }
        made = self._call(self._schedules.create_recurring_run, body)
        live = sum(one.get("status") == "ENABLED" for one in before)
        return str(made["recurring_run_id"]), live

    def _job(self, spec: Spec, version: Version, experiment: str, root: str) -> dict[str, Any]:
        where = root or spec.root
        return {
            "display_name": spec.name,
            "experiment_id": experiment,
            "pipeline_version_reference": {
                "pipeline_id": version.pipeline_id,
                "pipeline_version_id": version.version_id,
            },
            "runtime_config": {"pipeline_root": where} if where else {},
        }

    def recent(self, limit: int, experiment: str = "") -> list[dict[str, Any]]:
        """Runs that are not archived, the newest first, as the API describes them.

        Args:
            limit: how many at most; a server gives 200.
            experiment: its id; else of all.

        Raises:
            ServerError: the server refused.
        """
        here = {"experiment_id": experiment} if experiment else {"namespace": self.namespace}
        visible = _filter("storage_state", "NOT_EQUALS", "ARCHIVED")
        answer = self._call(
            self._runs.list_runs, page_size=limit, sort_by="created_at desc", filter=visible, **here
        )
        return list(answer.get("runs", []))

    def read(self, run: str) -> dict[str, Any]:
        """A run, as the API describes it.

        Raises:
            ServerError: the server refused.
        """
        return self._call(self._runs.get_run, run)

    def link(self, id: str, page: str = "runs") -> str:
        """The UI's page of a run, or of a recurring run (`recurringrun`)."""
        return f"{self.host}/#/{page}/details/{id}"

    def _call(self, call: Callable[..., Any], *given: Any, **query: Any) -> dict[str, Any]:
        """Make a call and return the JSON.

        The bodies are read here, not by the generated models: those know the states of their own
        day alone, and take a login page for an empty answer.
        """
        import kfp_server_api as kfp
        import urllib3

        query = {key: value for key, value in query.items() if value}
        options = {"_preload_content": False, "_request_timeout": _TIMEOUT}
        try:
            response = call(*given, **query, **options)
            body, url = response.data, response.geturl() or ""
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from None
        except kfp.ApiException as error:
            raise self._refused(error.status, error.body or "") from None
        except UnicodeDecodeError:  # the generated client decodes refusals as UTF-8
            raise self._stranger("something else refuses") from None
        try:
            answer = json.loads(body)
        except ValueError:
            raise self._stranger(
                "a web page answers, as a login page does" if b"<html" in body[:2000].lower()
                else "something else answers"
            ) from None  # fmt: skip
        if url.startswith("http") and not url.startswith(self.host):
            # A POST that is redirected arrives as a GET.
            raise ServerError(
                "UNIMPLEMENTED",
                f"{self.host}: redirects to {url.partition('/apis/')[0]}; give that as --host.",
            )
        return answer if isinstance(answer, dict) else {}

    def _stranger(self, found: str) -> ServerError:
        return ServerError(
            "UNIMPLEMENTED",
            f"{self.host}: {found}, where the API of Kubeflow Pipelines is expected. Give the "
            "address of its UI, with the path (https://HOST/pipeline), and a token (--token-file) "
            "if it asks for a login.",
        )

    def _unreachable(self, error: Exception) -> ServerError:
        why = str(getattr(error, "reason", None) or error)
        why = re.sub(r"^<.*?>: |^\w+\(<.*?>, |HTTPS?ConnectionPool\(.*?\): ", "", why)
        hint = "Is it the right address, and is a port-forward still up?"
        if "CERTIFICATE_VERIFY_FAILED" in why:
            hint = "Name the PEM file of who signed its certificate with --ca."
        elif "SSL" in why:
            hint = "Does it speak TLS there? Else write http://."
        return ServerError("UNAVAILABLE", f"{self.host}: no answer ({why.strip(')')}). {hint}")

    def _refused(self, status: int, body: str) -> ServerError:
        code, why = _CODES.get(status, "UNKNOWN"), _reason(body)
        if status == 401:
            return ServerError(
                code,
                f"{self.host}: the token is missing, wrong or expired (401{_after(why)}). Give a "
                "new one with --token-file.",
            )
        if status == 403:
            here = f' in the namespace "{self.namespace}"' if self.namespace else ""
            return ServerError(
                code,
                f"{self.host}: this is not allowed{here}, or there is no such namespace "
                f"(403{_after(why)}).",
            )
        if why in ("Failed to create a pipeline", "Failed to create a pipeline version"):
            # All that an upload says to a caller who may not create.
            why += "; it says no more to one who may not create pipelines here"
        return ServerError(code, f"{self.host}: refused ({status}): {why or 'no reason given'}")


def full_address(host: str) -> str:
    """The address with a scheme and without a slash at its end.

    Raises:
        ConfigError: it cannot be one.
    """
    host = host.strip()
    if "://" not in host:
        machine = host.partition("/")[0].rpartition(":")[0] or host.partition("/")[0]
        near = machine in ("localhost", "[::1]") or machine.startswith("127.")
        host = f"{'http' if near else 'https'}://{host}"
    host = host.rstrip("/").removesuffix("/#")
    try:
        parts = urllib.parse.urlsplit(host)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine or re.search(r"[\s?#@]", host):
        raise ConfigError(
            f"--host {host}: not an address; http://localhost:8080 or https://HOST/pipeline is "
            "expected."
        )
    return host


def _readable(ca: Path | None) -> str | None:
    if ca is None:
        return None
    try:
        if "-----BEGIN CERTIFICATE-----" not in ca.read_text(encoding="utf-8", errors="replace"):
            raise ConfigError(f"--ca {ca}: holds no certificate; a PEM file is expected.")
    except OSError as error:
        raise ConfigError(f"--ca {ca}: cannot be read: {error.strerror}.") from None
    return str(ca)


def _authorize(settings: Any, token: str, file: Path | None) -> None:
    def refresh(settings: Any) -> None:
        settings.api_key["authorization"] = _header(read_token(file) if file else token.strip())

    refresh(settings)
    settings.api_key_prefix["authorization"] = "Bearer"
    settings.refresh_api_key_hook = refresh


def _header(token: str) -> str:
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("the token: has a space, a line's end or a letter that no token has.")
    return token


def _reason(body: str) -> str:
    """What the server says in its own words: JSON of the gateway's or the upload's, or text."""
    try:
        told = json.loads(body)
    except ValueError:
        return "" if "<html" in body[:2000].lower() else body.strip().partition("\n")[0]
    if not isinstance(told, dict):
        return ""
    message = str(told.get("message") or told.get("error_message") or told.get("error") or "")
    for detail in told.get("details") or ():
        words = str(detail.get("message") or "") if isinstance(detail, dict) else ""
        # The outer message strings all causes together; but this one can be empty of content.
        if words and words not in ("Internal Server Error", "Service unavailable"):
            message = words
    # A stack trace may follow.
    return message.strip().partition("\n")[0].rstrip(".")


def _after(why: str) -> str:
    return f": {why}" if why else ""


def _equal(key: str, value: str) -> str:
    return _filter(key, "EQUALS", value)


def _filter(key: str, operation: str, value: str) -> str:
    predicate = {"key": key, "operation": operation, "stringValue": value}
    text = json.dumps({"predicates": [predicate]})
    # The server decodes the parameter once more after HTTP has.
    return text.replace("%", "%25").replace("+", "%2B")


@contextlib.contextmanager
def _file(text: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        path = Path(folder) / "pipeline.yaml"  # the server goes by the ending
        path.write_text(text, encoding="utf-8")
        yield str(path)


def instant(stamp: str | None) -> datetime.datetime | None:
    """A time of the API's, in UTC; None for one that has not come, which it writes as 1970."""
    if not stamp or stamp.startswith("1970-01-01T00:00:00"):
        return None
    return datetime.datetime.fromisoformat(stamp[:19]).replace(tzinfo=datetime.timezone.utc)


def seconds(begin: str | None, end: str | None) -> float | None:
    """Between two times of the API's, or None if either has not come."""
    first, last = instant(begin), instant(end)
    return (last - first).total_seconds() if first and last else None
