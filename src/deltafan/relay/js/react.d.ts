// Types of react.js.

import type { DeltafanError, FollowOptions, JobError, StreamState, ToolCall, Usage } from "./deltafan.js";

export interface StreamSnapshot {
  text: string;
  reasoning: string;
  toolCalls: readonly ToolCall[];
  /** `idle`: there is no job id yet. */
  state: StreamState | "idle";
  usage: Usage | null;
  error: JobError | DeltafanError | null;
  connected: boolean;
  /** Stop the job. */
  cancel(): Promise<{ id: string; state: string; cancelled: boolean }>;
}

/**
 * A job's stream as React state: at most one rendering a frame, however fast the tokens come.
 *
 * It follows while the component is mounted, and anew when `jobId`, `relay` or `pusher` change. Callbacks and the token
 * function may be other ones with each rendering. Without a job id it is idle.
 */
export function useStream(jobId: string | null | undefined, options?: FollowOptions): StreamSnapshot;
