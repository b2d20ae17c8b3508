"""Requests without an answer, and which of them end a whole run."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.config.llm import EndpointConfig
from longtake.errors import LlmError
from longtake.llm.calls import ChatCall
from longtake.llm.schemas import Bad

_TOO_LONG = ("context length", "context_length", "context window", "too long", "max_model_len", "maximum number of tokens")


@dataclass(frozen=True)
class Fault:
    """A request without an answer."""

    kind: str
    """`http_<status>`, `timeout`, `connection`, or `garbled`: an answer that is none of this protocol."""
    message: str
    """The server's, or what happened, on one line; without keys."""
    retried: bool
    """Whether the same request may succeed later."""
    status: int = 0
    after_s: float | None = None
    """The server asks to wait so long."""
    unreachable: bool = False
    """There was not even a connection."""
    no_credit: bool = False


def no_access(config: EndpointConfig, fault: Fault, has_key: bool) -> LlmError:
    """401 or 403."""
    variable = config.key_variable
    given = f"the key in {variable} is not accepted" if has_key else f"no key was sent, since {variable} is not set"
    return LlmError(
        f"{config.url} answers {fault.status} ({fault.message}): {given}",
        rule="a server lets in who has a key for the model",
        remedy=f"put a valid key into the environment variable {variable}, or name another in key_variable, and give the command again",
    )


def no_credit(config: EndpointConfig, fault: Fault) -> LlmError:
    """402, or a quota that is used up."""
    return LlmError(
        f"{config.url} answers {fault.status}: {fault.message}",
        rule="the account behind the key pays for calls",
        remedy="add credit there and give the same command again: nothing that was paid is lost",
    )


def not_found(config: EndpointConfig, model: str, fault: Fault, names: list[str] | Fault) -> LlmError:
    """400 or 404. `names`: what the server lists."""
    listed = "it lists no models either" if isinstance(names, Fault) else f"it has {', '.join(names) or 'no model'}"
    return LlmError(
        f"{config.url} answers {fault.status} for model {model!r} ({fault.message}); {listed}",
        rule="the address ends with the version, such as /v1, and the server has the model",
        remedy="correct url, or name one of its models in model",
    )


def unreachable(config: EndpointConfig, fault: Fault, tries: int) -> LlmError:
    """No connection in any try."""
    return LlmError(
        f"no server answers at {config.url}: {fault.message} ({tries} tries)",
        rule="the address is that of a server that runs",
        remedy="start it, e.g. vllm serve MODEL, or correct url, and give the same command again: nothing that was paid is lost",
    )


def model_unclear(config: EndpointConfig, names: list[str]) -> LlmError:
    """`model` is None, and there is no single one."""
    return LlmError(
        f"{config.url} has {len(names)} models: {', '.join(names) or 'none'}",
        rule="without a name the server's only model is asked",
        remedy="name one of them in model" if names else "start the server with a model",
    )


def no_list(config: EndpointConfig, fault: Fault) -> LlmError:
    """`model` is None, and the server does not say what it has."""
    return LlmError(
        f"{config.url} does not list its models: {fault.kind}: {fault.message}",
        rule="without a name the server's only model is asked",
        remedy="name the model in model, or correct url: it ends with the version, such as /v1",
    )


def failed(config: EndpointConfig, call: ChatCall, fault: Fault, tries: int) -> str:
    """Message of a CallFailure."""
    given = f"{call.purpose}: {fault.kind} from {config.url} ({tries} {'try' if tries == 1 else 'tries'}): {fault.message}"
    if any(words in fault.message.lower() for words in _TOO_LONG):
        rule = f"question and answer (up to {call.max_tokens} tokens) fit into the model's context"
        remedy = "start the server with a longer one (vLLM: --max-model-len), or shorten what is asked"
    elif fault.retried:
        rule, remedy = "a call is answered within max_retries", "see the server's log, then give the same command again"
    else:
        rule, remedy = (
            "the server takes the request",
            "see its message; for a server without schemas set structured = off",
        )
    return str(LlmError(given, rule=rule, remedy=remedy))


def bad_answers(config: EndpointConfig, call: ChatCall, bad: Bad, tries: int) -> str:
    """Message of a CallFailure."""
    remedies = {
        "length": "let answers be longer, or reasoning shorter",
        "refused": "ask another model",
        "not_json": "set structured = json_schema where the server has it, or ask another model",
        "schema": "set structured = json_schema where the server has it, or ask another model",
    }
    return str(
        LlmError(
            f"{call.purpose}: {tries} {'answer' if tries == 1 else 'answers'} of {config.url} could not be used, the last: {bad.message}",
            rule="an answer is whole, and JSON that satisfies the schema",
            remedy=remedies[bad.kind],
        )
    )
