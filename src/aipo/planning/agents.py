"""The agents' servers, as whoever waits for them sees them.

Owns how long an answer takes once a seat is free. Must not know rollouts.
Invariant: service time = latency + tokens / speed of one seat; queueing comes on top, in the simulation.
"""

from dataclasses import dataclass

from aipo.planning.workload import Consultation


@dataclass(frozen=True, slots=True)
class AgentService:
    """Equal servers behind one queue."""

    servers: int | None = 2
    """None: as many as anybody could want, no queue."""
    concurrency: int = 64
    """Requests that a server answers at the same time."""
    tokens_s: float = 3000.0
    """Of a server with all seats taken, all its answers together; 0: latency is all there is."""
    gpus_per_server: int = 1
    instant: bool = False
    """Answers at once: what rollouts would take without waiting."""

    def __post_init__(self) -> None:
        if (self.servers is not None and self.servers < 1) or self.concurrency < 1 or self.tokens_s < 0:
            raise ValueError(
                f"--agent-servers {self.servers}, --agent-concurrency {self.concurrency}, --agent-tokens-s "
                f"{self.tokens_s:g}: at least one server with one seat, and no negative throughput"
            )

    @property
    def seats(self) -> int | None:
        """Requests that all servers answer at the same time; None: without limit."""
        return None if self.servers is None else self.servers * self.concurrency

    def service_s(self, consultation: Consultation) -> float:
        """Return the time that a request holds a seat.

        A seat writes at 1/concurrency of the server's throughput even when others are free: pessimistic for
        a server that is not full.
        """
        if self.instant:
            return 0.0
        written = consultation.feedback_tokens * self.concurrency / self.tokens_s if self.tokens_s else 0.0
        return consultation.latency_s + written
