"""Make a wandb workspace with optland's charts, the most important first: for those with a server.

python wandb_workspace.py my-team my-project              # pip install wandb-workspaces
python wandb_workspace.py my-team my-project --prefix ""  # for runs of optland's own recipes
python wandb_workspace.py --show                          # what it would make; needs no server
"""

import argparse

from optland.log.meanings import GROUPS, VOCABULARY


def sections(prefix):
    """Titles with the keys that have a chart of their own, in the order of importance."""
    found = {}
    for key in VOCABULARY:
        if key.chart and "<" not in key.name:
            group = key.name.partition("/")[0]
            found.setdefault(f"{group}: {GROUPS[group]}", []).append(prefix + key.name)
    return found


def workspace(entity, project, prefix):
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    chosen = [
        ws.Section(
            name=title,
            is_open=True,
            panels=[wr.LinePlot(title=key, x=f"{prefix}step", y=[key]) for key in keys],
        )
        for title, keys in sections(prefix).items()
    ]
    return ws.Workspace(entity=entity, project=project, name="optland", sections=chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entity", nargs="?")
    parser.add_argument("project", nargs="?")
    parser.add_argument("--prefix", default="optland/")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    if given.show:
        for title, keys in sections(given.prefix).items():
            print(title, *keys, sep="\n  ")
    elif given.project is None:
        parser.error("give the entity and the project, or --show")
    else:
        print(workspace(given.entity, given.project, given.prefix).save().url)
