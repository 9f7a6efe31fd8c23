"""`python -m tickwheel.bench`: the end-to-end benchmark."""

from .endtoend import main

if __name__ == "__main__":
    main()
