-- Begin an attempt: count it, name its owner, write its `meta`. From then on Redis refuses every append of an older one.
-- KEYS  1 job  2 log  3 live channel  4 stream  5 deadlines  6 expiries  7 dead
-- ARGV  1 id  2 entry  3 worker  4 group  5 provider (JSON)  6 can continue 0|1  7 max attempts  8 idle ms
--       9 retention s  10 '1': the worker has begun this attempt before, and has not ended it
-- Gives {run, attempt, spec, failures, usage, fresh | restart | continued, created, now, tenant, meta event, cancel,
--         first attempt whose usage is lost or '', characters of the text that goes on}
--     | {ended, state, code of what ended it here or '': it had ended before}  the log is whole: deliver what is
--                       missing, acknowledge
--     | {stale}         another worker runs it, and gets the entry back (the group was made anew, say); or it has
--                       another place in the queue, or no record, and the entry is acknowledged
local k = {job = KEYS[1], log = KEYS[2], live = KEYS[3], expiries = KEYS[6]}
local id, entry, worker, group = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local h = read_job(k.job)
local now = now_ms()
local BROKE_OFF = 'the attempt broke off in its worker'

if not h or h.entry ~= entry or h.stream ~= KEYS[4] then
  drop_entry(KEYS[4], group, entry)
  return {'stale'}
end
if h.state == 'running' and h.owner ~= worker then
  hand_back(KEYS[4], group, h.owner, entry)
  return {'stale'}
end
local is_torn = torn(h)
if h.state == 'running' and h.seq == '0' and ARGV[10] ~= '1' and not is_torn then -- the reply of our first try was lost
  local meta = redis.call('XRANGE', k.log, h.attempt .. '-0', h.attempt .. '-0')[1]
  if meta then
    return {'run', tonumber(h.attempt), h.spec, tonumber(h.failures), h.usage, h.how, h.created, int(now), h.tenant,
      meta[2][2], h.cancel, h.usage_lost, tonumber(h.chars)}
  end
end
if h.state ~= 'queued' and h.state ~= 'running' then
  return {'ended', h.state, ''}
end
if h.retention == '' then
  h.retention = ARGV[9]
  redis.call('HSET', k.job, 'retention', h.retention)
end
if h.max_attempts == '' then
  redis.call('HSET', k.job, 'max_attempts', ARGV[7])
end
redis.call('ZREM', KEYS[5], id)
if h.deadline ~= '' and h.attempt == '0' and tonumber(h.deadline) <= now then
  end_unowned(k, id, h, now, 'expired', 'expired', 'expired', 'not started within expires_in')
  return {'ended', 'expired', 'expired'}
end
if h.state == 'running' and is_torn then -- Redis has lost how it ended, which is not its fault
  lose_usage(k.job, h)
elseif h.state == 'running' then -- our own attempt broke off without an end: it has failed, and a new one may follow
  lose_usage(k.job, h)
  h.failures = add_failure(k.job,
    '{"attempt":' .. h.attempt .. ',"code":"server_error","message":"' .. BROKE_OFF .. '"}')
  if h.failures >= tonumber(h.max_attempts ~= '' and h.max_attempts or ARGV[7]) then
    end_unowned(k, id, h, now, 'failed', 'error', 'server_error', BROKE_OFF)
    bury(KEYS[7], k.job, id, now, 'server_error')
    return {'ended', 'failed', 'server_error'}
  end
end
local how, flag = 'fresh', ''
if h.visible == '1' then
  local whole = not is_torn and h.seq ~= '-1' and redis.call('EXISTS', k.log) == 1
  local can = ARGV[6] == '1' and tonumber(h.chars) > 0 and whole
  local fails = h.on_takeover == 'fail' or h.on_takeover == 'fail_if_lost'
  -- What a draining worker hands over is whole, up to the last word: going on from it voids nothing before a reader.
  if can and (h.on_takeover == 'continue' or (h.on_takeover == 'fail_if_lost' and h.lost == 'handed_over')) then
    how, flag = 'continued', ',"continued":true'
  elseif fails and h.lost ~= '' then
    if h.lost == 'handed_over' then -- the reaper has noted a loss
      add_failure(k.job, '{"attempt":' .. h.attempt .. ',"code":"worker_lost","message":"its worker was shut down"}')
    end
    end_unowned(k, id, h, now, 'failed', 'error', 'worker_lost', 'its worker could not end it, and on_takeover is fail')
    bury(KEYS[7], k.job, id, now, 'worker_lost')
    return {'ended', 'failed', 'worker_lost'}
  else
    how, flag = 'restart', ',"restart":true'
  end
elseif is_torn then -- a lost attempt may have put something out
  how, flag = 'restart', ',"restart":true'
end

local attempt = next_attempt(h, is_torn)
local meta = emit(k.log, k.live, h.channel, id, attempt, 0, meta_body(attempt, ARGV[5], h.meta, now, flag))
redis.call('PEXPIRE', k.log, ARGV[8])
redis.call('HSET', k.job, 'state', 'running', 'attempt', attempt, 'seq', 0, 'owner', worker, 'claimed', int(now),
  'provider', ARGV[5], 'lost', '', 'how', how, 'run', server_run())
if how == 'restart' then
  redis.call('HSET', k.job, 'chars', 0, 'visible', '')
end
redis.call('HSETNX', k.job, 'started', int(now))
return {'run', attempt, h.spec, tonumber(h.failures), h.usage, how, h.created, int(now), h.tenant, meta, h.cancel,
  h.usage_lost, how == 'continued' and tonumber(h.chars) or 0}
