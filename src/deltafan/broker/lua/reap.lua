-- Take one entry from a worker whose heartbeat has stopped, and queue it before all waiting ones.
-- A running job is charged a failure; when that was its last, it ends here: `error`, `done`, dead letter.
-- KEYS  1 worker's heartbeat  2 stream  3 takeover stream  4 job  5 log  6 live channel  7 expiries  8 dead
-- ARGV  1 id  2 entry  3 worker  4 group  5 model  6 raw spec or ''  7 max attempts  8 retention s
-- Gives alive | missing | moved | failed | cancelled | returned to the worker that runs it
local stream, group, entry = KEYS[2], ARGV[4], ARGV[2]

-- Whether a job was lost with its worker, and may fail only once more: maybe it is what kills workers.
local function last_chance(job, max_attempts)
  local now = redis.call('HMGET', job, 'lost', 'failures', 'max_attempts')
  local most = tonumber(now[3] and now[3] ~= '' and now[3] or max_attempts)
  return (now[1] or '') ~= '' and now[1] ~= 'handed_over' and tonumber(now[2]) + 1 >= most
end

if redis.call('EXISTS', KEYS[1]) == 1 then
  return 'alive'
end
local pending = redis.call('XPENDING', stream, group, entry, entry, 1, ARGV[3])
if #pending == 0 then
  return 'missing'
end
local h = read_job(KEYS[4])
local now = now_ms()
if h and h.entry == entry and h.stream == stream and h.state == 'running' then
  if h.owner ~= ARGV[3] then -- the group was made anew, and the dead worker got what another one runs
    hand_back(stream, group, h.owner, entry)
    return 'returned'
  end
  local failures = add_failure(KEYS[4], '{"attempt":' .. h.attempt .. ',"code":"worker_lost","message":'
    .. '"its worker stopped sending heartbeats","at":' .. int(now) .. '}') -- without its name: users read this
  lose_usage(KEYS[4], h)
  local k = {job = KEYS[4], log = KEYS[5], live = KEYS[6], expiries = KEYS[7]}
  if h.retention == '' then h.retention = ARGV[8] end
  local most = tonumber(h.max_attempts ~= '' and h.max_attempts or ARGV[7])
  if h.cancel == '1' or failures >= most then
    local code, message = 'worker_lost', 'the worker was lost; attempt ' .. failures .. ' of ' .. most
    drop_entry(stream, group, entry)
    redis.call('HSET', KEYS[4], 'entry', '')
    if h.cancel == '1' then
      end_unowned(k, ARGV[1], h, now, 'cancelled', 'cancelled', '', '')
      return 'cancelled'
    end
    end_unowned(k, ARGV[1], h, now, 'failed', 'error', code, message)
    bury(KEYS[8], KEYS[4], ARGV[1], now, code)
    return 'failed'
  end
  redis.call('HSET', KEYS[4], 'state', 'queued', 'owner', '', 'lost', ARGV[3])
end
local fields = ARGV[6] ~= '' and {'id', ARGV[1], 'job', ARGV[6]} or {'id', ARGV[1], 'model', ARGV[5]}
local known = h and h.entry == entry and h.stream == stream
if known and last_chance(KEYS[4], ARGV[7]) then
  fields[5], fields[6] = 'last_chance', '1'
end
local moved = redis.call('XADD', KEYS[3], '*', unpack(fields))
if known then
  redis.call('HSET', KEYS[4], 'entry', moved, 'stream', KEYS[3])
end
drop_entry(stream, group, entry)
return 'moved'
