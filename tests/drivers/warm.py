"""Run the runner, or fault.py, many times from one warm Python: each run is a fork that finds all modules loaded.

    python warm.py RUNNER       then lines on stdin: {"argv": ["fault" or "runner", ARGUMENT...], "out": path, "err": path}
                                and for each one line on stdout: its exit code, or minus the signal that ended it

A run is a process of its own, with a __main__ of its own, as if started afresh; what it saves is the start of Python and
the imports, which take longer than a run of small files.
"""
import importlib
import json
import os
import sys
import types

FOLDER = os.path.dirname(os.path.abspath(__file__))


def load(runner):
    """Load every module beside *runner* that is no program, and return the runner's code."""
    beside = os.path.dirname(runner)
    sys.path[0] = beside
    for name in sorted(os.listdir(beside)):
        if name.endswith(".py"):
            with open(os.path.join(beside, name), "rb") as file:
                is_program = b'\nif __name__ == "__main__":' in file.read()
            if not is_program:
                importlib.import_module(name[:-len(".py")])
    with open(runner, "rb") as file:
        return compile(file.read(), runner, "exec", dont_inherit=True)


def redirect(request):
    """In the child: stdin is empty, stdout and stderr are the request's files."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for target, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), os.open(request["out"], flags, 0o600), os.open(request["err"], flags, 0o600))):
        os.dup2(descriptor, target)
        os.close(descriptor)


def serve(requests, answers):
    """Answer requests until there are no more, and return None; in a child return its argv at once."""
    for line in iter(requests.readline, b""):
        request = json.loads(line.decode("utf-8"))
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            redirect(request)
            return request["argv"]
        status = os.waitpid(child, 0)[1]
        answers.write(b"%d\n" % (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)))
        answers.flush()
    return None


def main():
    runner = sys.argv[1]
    code = load(runner)
    # Away from 0 and 1, which are a child's own; neither is inherited by what a child starts.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    argv = serve(requests, answers)
    if argv is None:
        return

    def run():
        module = types.ModuleType("__main__")
        module.__file__ = runner
        sys.modules["__main__"] = module
        exec(code, module.__dict__)

    sys.argv[:] = [runner] + argv[1:]
    if argv[0] == "fault":
        sys.path.append(FOLDER)
        import fault
        fault.main(run)
    else:
        run()


if __name__ == "__main__":
    main()
