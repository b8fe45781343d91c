// The claims of tests/oracle.py about one follower's events, in JavaScript: ids strictly rise, each attempt is gapless
// from its meta, exactly one `done`, last; the text is what the deltas and the provider say.

import assert from "node:assert/strict";

const parse = (id) => id.split("-").map(Number);

/** Asserts that ids rise without a gap, from `after` on. */
export function checkOrder(events, after = null) {
  let last = after === null ? null : parse(after);
  for (const event of events) {
    const id = parse(event.id);
    const first = parse(event.first ?? event.id);
    assert.ok(first[0] === id[0] && first[1] <= id[1], `${event.first} is no first of ${event.id}`);
    if (last === null || first[0] > last[0]) {
      assert.equal(first[1], 0, `attempt ${first[0]} begins at ${first}, not with its meta`);
      assert.equal(event.type, "meta");
    } else {
      assert.deepEqual(first, [last[0], last[1] + 1], `${first} follows ${last}`);
    }
    last = id;
  }
}

/** The text that the events amount to. */
export function textOf(events) {
  let text = "";
  for (const event of events) {
    if (event.type === "meta" && !event.continued) text = "";
    if (event.type === "text_delta" && !event.choice) text += event.text;
  }
  return text;
}

/** Asserts a transcript that has ended, and that the stream's own text is its text. */
export function checkWhole(events, text, after = null) {
  checkOrder(events, after);
  assert.equal(events.at(-1)?.type, "done", `ends with ${events.at(-1)?.type}`);
  assert.equal(events.filter((event) => event.type === "done").length, 1);
  assert.equal(textOf(events), text);
  if (after === null) assert.equal([...text].length, events.at(-1).text_length);
}
