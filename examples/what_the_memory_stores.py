"""What does a memory store of a text, and what does it say when asked?

    python examples/what_the_memory_stores.py

The pocket model reads a story with one fact in it, far behind its window of 128 tokens, and a
question.  For each layer with a memory: the norm of its state, how strongly the words of the fact
were written compared with the filler around them, and how much the memory adds to the residual
stream where the answer is due, beside what the stream holds there.
"""

from __future__ import annotations

import torch

import ahn

FILLER = ("the sun is warm .", "people walk along the road .", "it rains for a while .")
FACT = "the job of frank is driver ."
QUESTION = "what is the job of frank ? the job of frank is"


def story(before: int = 12, after: int = 40) -> str:
    """The fact after `before` sentences of filler, and `after` more behind it."""
    filler = [FILLER[index % len(FILLER)] for index in range(before + after)]
    sentences = ["read the story :", *filler[:before], FACT, *filler[before:]]
    return " " + " ".join([*sentences, QUESTION])


def main() -> None:
    """Read, look, ask."""
    tokenizer = ahn.load_tokenizer("pocket")
    model = ahn.load_model("pocket", ahn="pocket/gdn", window=128, sinks=4)
    print(model.layout_table())

    inputs = tokenizer(story(), return_tensors="pt")
    ids = inputs["input_ids"]
    fact = tokenizer(" " + FACT, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    windows = ids[0].unfold(0, len(fact), 1)
    start = int((windows == fact).all(1).nonzero()[0, 0])
    of_fact = slice(start, start + len(fact))
    distance = ids.shape[1] - of_fact.stop
    print(f"{ids.shape[1]} tokens; the fact ends {distance} tokens before the end\n")

    readouts = model.memory_readout(ids, positions=[-1])
    with torch.no_grad():
        passed = model(ids, output_hidden_states=True)
    print("layer  heads' state norms        written: fact   filler   says / stream")
    for readout in readouts:
        written = readout.gates["write"][0].mean(-1)  # [T], over heads
        left = written[model.layout[readout.layer].sinks : -128]
        norms = " ".join(f"{norm:6.2f}" for norm in readout.norms["state"][0].tolist())
        said = readout.contribution[0, 0].norm() / passed.hidden_states[readout.layer][0, -1].norm()
        print(
            f"{readout.layer:5}  {norms:<25} {written[of_fact].mean():12.3f} {left.mean():8.3f}"
            f"   {said:13.3f}"
        )

    words = [tokenizer.decode(token).strip() for token in fact]
    strongest = max(readouts, key=lambda readout: float(readout.contribution.norm()))
    strengths = strongest.gates["write"][0, of_fact].mean(-1).tolist()
    print(f"\nlayer {strongest.layer} says most; it writes the fact's words with strength")
    print(
        "  "
        + "  ".join(
            f"{word} {strength:.2f}" for word, strength in zip(words, strengths, strict=True)
        )
    )

    print("\nwhat is answered:")
    for variant in ("ahn", "window"):
        other = ahn.load_model("pocket", variant, ahn="pocket/gdn", window=128, sinks=4)
        output = other.generate(**inputs, max_new_tokens=1, do_sample=False)
        print(f"  {variant:7} {tokenizer.decode(output[0, ids.shape[1] :]).strip()}")


if __name__ == "__main__":
    main()
