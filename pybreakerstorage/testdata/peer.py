"""A Python service: it does what it is told on standard input, one word a line,
and answers each with one line. Its arguments are a Redis address, a namespace,
fail_max and reset_timeout."""

import logging
import sys

import pybreaker
import redis


def fail():
    raise ValueError("it failed")


def do(breaker, word):
    if word == "state":
        return breaker.current_state
    if word in ("open", "half_open", "close"):
        getattr(breaker, word)()
        return "done"
    try:
        breaker.call(fail if word == "failure" else lambda: None)
    except pybreaker.CircuitBreakerError as e:
        return f"rejected: {e}"
    except ValueError:
        return "error"
    return "ok"


def main(address, namespace, fail_max, reset_timeout):
    logging.disable()
    storage = pybreaker.CircuitRedisStorage(
        "closed", redis.Redis.from_url("redis://" + address), namespace=namespace
    )
    breaker = pybreaker.CircuitBreaker(
        fail_max=int(fail_max), reset_timeout=float(reset_timeout), state_storage=storage
    )
    print("ready", flush=True)
    for line in sys.stdin:
        print(do(breaker, line.strip()), flush=True)


main(*sys.argv[1:])
