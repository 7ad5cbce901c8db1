"""Whether a download would start: TFDS itself retries for minutes before it gives up."""

import threading

import requests


def unreachable_reason(url: str, timeout: float = 4.0) -> str | None:
    """Says why a download from `url` would fail, or None if the server starts to send it.

    Asks exactly as TFDS does (a GET by `requests`, with the proxies of the environment) and reads
    no content. The wait is bounded as a whole: a slow name server, a black-holed connection and a
    silent server all count.

    Args:
        url: address of a file.
        timeout: seconds to wait at most.
    """
    outcome: list[str | None] = [f"no answer within {timeout:g} seconds"]

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=timeout) as response:
                outcome[0] = None if response.ok else f"HTTP status {response.status_code}"
        except requests.RequestException as error:
            outcome[0] = type(error).__name__

    # A daemon: a name look-up cannot be interrupted and must not hold up the end of the program.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    return outcome[0]
