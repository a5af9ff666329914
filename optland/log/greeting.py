"""Check, with a short timeout, whether a server answers at all before anything waits for it for long."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request


def silence(url: str, timeout: float = 3.0) -> str:
    """Why the server at ``url`` gives no answer; empty where it gives any at all, a refusal included.

    Args:
        url: Address of the server.
        timeout: Seconds to wait for its first word; one that takes longer would hold up whoever depends on it.

    Example:
        >>> "refused" in silence("http://127.0.0.1:1")
        True
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout):
            return ""
    except (urllib.error.HTTPError, http.client.HTTPException, ssl.SSLError):
        return ""
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        # A certificate that only the caller's own client knows to accept is an answer too.
        return "" if isinstance(reason, ssl.SSLError) else str(reason)
