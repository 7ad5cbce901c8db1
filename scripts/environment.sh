# Sourced by the other scripts: goes to the repository's root, and makes .venv or brings it up to date.
# PYTHON=/path/to/python chooses the interpreter (3.11 or 3.12) that makes a new environment.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
        if is_suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or 3.12 with venv is needed; ${PYTHON:-none found} is not one." \
        "Set PYTHON=/path/to/python." >&2
    return 1
}

is_suitable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
        2>/dev/null
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

# Installs this package into .venv as it stands here, unless that was done before.
install_package() {
    local stamp=.venv/installed-pyproject.toml
    if cmp -s pyproject.toml "$stamp"; then
        return
    fi
    echo "Installing abs_model into .venv" >&2
    .venv/bin/python -m pip install --disable-pip-version-check --no-deps --editable .
    cp pyproject.toml "$stamp"
}

# A .venv whose interpreter is gone or of another version, or that was cut off, is made anew.
if ! is_suitable .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    rm -rf .venv
    echo "Making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv
fi
install requirements.txt
install_package
