"""Fits LightGCN and writes the items' vectors: a program for an environment with PyTorch Geometric.

    python lightgcn_worker.py '{"edges": "edges.npz", "out": "vectors.npy", ...}'

The model and its loss are those of torch_geometric.nn.LightGCN: each edge of a batch has one
random negative item, and all vectors are propagated in every step.
"""

import json
import sys

import numpy as np


def main(plan):
    """Fits by the plan that lightgcn.py makes, and writes float32 [items, dim]."""
    import torch
    from torch_geometric.nn import LightGCN
    from torch_geometric.utils import to_torch_csr_tensor

    torch.manual_seed(plan["seed"])
    torch.set_num_threads(plan["threads"])
    num_items, num_nodes = plan["items"], plan["items"] + plan["collections"]
    with np.load(plan["edges"], allow_pickle=False) as saved:
        items = torch.as_tensor(saved["items"].astype(np.int64))
        collections = torch.as_tensor(saved["collections"].astype(np.int64)) + num_items
    both = torch.stack([torch.cat([items, collections]), torch.cat([collections, items])])
    adjacency = to_torch_csr_tensor(both, size=(num_nodes, num_nodes))
    model = LightGCN(num_nodes, plan["dim"], plan["layers"])
    optimizer = torch.optim.Adam(model.parameters(), lr=plan["learning_rate"])
    for _ in range(plan["epochs"]):
        for batch in torch.randperm(len(items)).split(plan["batch"]):
            users, positive = collections[batch], items[batch]
            negative = torch.randint(0, num_items, (len(batch),))
            pairs = torch.stack([users.repeat(2), torch.cat([positive, negative])])
            better, worse = model(adjacency, pairs).chunk(2)
            loss = model.recommendation_loss(
                better, worse, node_id=pairs.unique(), lambda_reg=plan["penalty"]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        vectors = model.get_embedding(adjacency)[:num_items]
    np.save(plan["out"], vectors.numpy().astype(np.float32))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
