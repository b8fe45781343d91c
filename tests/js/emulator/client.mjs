// pusher-js under remote control: commands come as lines of JSON, what it experiences goes out as lines of JSON.
//
//   {"do": "connect", "key": "...", "options": {...}}     {"said": "state", "state": "connected"}
//   {"do": "subscribe", "channel": "..."}                 {"said": "event", "channel", "event", "data"}
//   {"do": "unsubscribe", "channel": "..."}               {"said": "error", "error": {...}}
//   {"do": "trigger", "channel", "event", "data"}         {"said": "sent" | "received", "event": "pusher:pong"}
//   {"do": "signin"}, {"do": "disconnect"}                {"said": "member" | "typing" | "user", ...}
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const Pusher = createRequire(import.meta.url)("pusher-js");
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let pusher;

const actions = {
  connect({ key, options }) {
    pusher = new Pusher(key, options);
    const send = pusher.connection.send_event.bind(pusher.connection);
    pusher.connection.send_event = (event, data, channel) => {
      say({ said: "sent", event });
      return send(event, data, channel);
    };
    pusher.connection.bind("state_change", ({ current }) =>
      say({ said: "state", state: current, socket_id: pusher.connection.socket_id }),
    );
    pusher.connection.bind("error", (error) => say({ said: "error", error }));
    pusher.connection.bind("message", ({ event }) => say({ said: "received", event }));
    pusher.user.bind_global((event, data) => say({ said: "user", event, data }));
  },
  subscribe({ channel }) {
    const subscribed = pusher.subscribe(channel);
    subscribed.bind_global((event, data) => say({ said: "event", channel, event, data }));
    subscribed.bind("client-typing", (data, metadata) => say({ said: "typing", data, user_id: metadata?.user_id }));
    for (const event of ["pusher:member_added", "pusher:member_removed"]) {
      subscribed.bind(event, (member) => say({ said: "member", channel, event, member }));
    }
  },
  unsubscribe: ({ channel }) => pusher.unsubscribe(channel),
  trigger: ({ channel, event, data }) => pusher.channel(channel).trigger(event, data),
  signin: () => pusher.signin(),
  disconnect: () => pusher.disconnect(),
};

createInterface({ input: process.stdin }).on("line", (line) => {
  const command = JSON.parse(line);
  actions[command.do](command);
});
