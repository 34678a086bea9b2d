"""Show what a recipe builds: genflow/commands/show_recipe.py."""

from genflow.cli.scripts import run_command

if __name__ == "__main__":
    run_command("show_recipe")
