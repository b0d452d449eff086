"""An engine whose steps a test takes itself."""

from server.batching.model_engine import ModelEngine


class Stepped(ModelEngine):
    """The wave at work is kept from step to step."""

    at_work = None

    def take_step(self):
        self.at_work = self.step(self.at_work)

    def take_steps(self, count=1):
        for _ in range(count):
            self.take_step()
