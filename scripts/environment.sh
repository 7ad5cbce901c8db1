# Sourced by the other scripts: goes to the repository's root, and makes .venv or brings it up to date.
# With PYTHON=/path/to/python another interpreter (3.11 or 3.12) makes the environment.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3 python; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or 3.12 with venv is needed; none was found. Set PYTHON=/path/to/python." >&2
    return 1
}

# install FILE: installs a requirements file into .venv, unless it did so before.
install() {
    local stamp=".venv/installed-${1//\//-}"
    if cmp -s "$1" "$stamp"; then
        return
    fi
    echo "Installing $1 into .venv" >&2
    .venv/bin/python -m pip install --disable-pip-version-check -r "$1"
    cp "$1" "$stamp"
}

# A .venv whose interpreter is gone, or that was cut off while being made, is made anew.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    rm -rf .venv
    echo "Making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv
fi
install requirements.txt
