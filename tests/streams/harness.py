"""What a test of streams starts: backends that it plays itself, and real clients as processes."""

import lab
from backend import Backend
from browser import Browser


class Lab(lab.Lab):
    """Backends, balancers and clients of one test."""

    def __init__(self, directory, driver):
        super().__init__(directory)
        self._driver = driver
        self._backends = []

    def balancer(self, backends, **options):
        return super().balancer(backends, STEPFLOW_LB_IO_DRIVER=self._driver, **options)

    def backend(self):
        self._backends.append(Backend(self._host()))
        return self._backends[-1]

    def backends(self, count):
        return [self.backend() for _ in range(count)]

    def browser(self):
        return self._add(Browser(self._name("browser"), self.directory)).wait_ready()

    def client(self, *argv):
        """A client as a process; what it says is its log."""
        name, env = self._name("client"), lab.clean_environment()
        return self._add(lab.Process(name, argv, self.directory, env=env))

    def _name(self, kind):
        return f"{kind}-{next(self._serial)}"

    def close(self):
        # Its orderly end would wait two seconds for the unused connections of the browser, which
        # does not close them when it is told to.
        for process in self.processes:
            if isinstance(process, lab.Balancer):
                process.kill()
        super().close()
        for backend in self._backends:
            backend.die()
