-- Put before every script. Helpers only: no keys, no effects of its own. Before it stands one line that says PUBLISH:
-- on a cluster our own channels are sharded (SPUBLISH); a user's own channel never is.

-- Redis's clock in milliseconds: every process measures leases and deadlines by this one clock.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Whole numbers as text: tostring() would give 1.7e+12.
local function int(n)
  return string.format('%.0f', n)
end

local function publish(live, own, event)
  redis.call(PUBLISH, live, event)
  if own and own ~= '' then
    redis.call('PUBLISH', own, event)
  end
end

-- Write one event that a script makes itself. `body` is the JSON after the id: '"type":"…",…}'.
local function emit(log, live, own, job, attempt, seq, body)
  local id = attempt .. '-' .. seq
  local event = '{"v":1,"job":"' .. job .. '","id":"' .. id .. '",' .. body
  redis.call('XADD', log, id, 'e', event)
  publish(live, own, event)
  return event
end

local function meta_body(attempt, provider, fragment, now, flag)
  return '"type":"meta","attempt":' .. attempt .. ',"provider":' .. provider .. ',' .. fragment
    .. ',"created":' .. int(now) .. flag .. '}'
end

-- The record of a job that has ended counts down to its expiry, and so does its log. `expiries` tells the sweeper when
-- to take the job out of its tenant's index.
local function retire(job_key, log, expiries, id, tenant, now, retention_s)
  local ms = math.floor(tonumber(retention_s) * 1000)
  redis.call('PEXPIRE', job_key, int(ms))
  redis.call('PEXPIRE', log, int(ms))
  redis.call('ZADD', expiries, int(now + ms), tenant .. ' ' .. id)
end

-- Which life of which server this is: another one after a restart or a failover, which may have lost the latest writes.
-- Empty where an ACL forbids INFO: then nobody can tell.
local known_run
local function server_run()
  if not known_run then
    local info = redis.pcall('INFO', 'server')
    known_run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
  end
  return known_run
end

-- Whether followers may have seen what this job's record and log no longer hold.
local function torn(h)
  local run = server_run()
  return h.run ~= '' and run ~= '' and h.run ~= run
end

-- Attempts of one job that may be lost with the latest writes, at the most: their ids must not come again.
local MOST_LOST = 10

local function next_attempt(h, is_torn)
  return tonumber(h.attempt) + 1 + (is_torn and MOST_LOST or 0)
end

local UNKNOWN_USAGE = '"prompt_tokens":null,"completion_tokens":null,"total_tokens":null,"cached_tokens":null,'
  .. '"reasoning_tokens":null,"cost_usd":null,"source":"unknown"}'

-- End a job that no worker runs (waiting, or lost by its worker): [meta], [error], done.
-- h: attempt, seq, chars, created, tenant, meta, channel, retention of the job's hash.
local function end_unowned(k, id, h, now, state, reason, code, message)
  local attempt, seq, chars = tonumber(h.attempt), tonumber(h.seq), h.chars
  local is_torn = torn(h)
  if is_torn or (attempt > 0 and (seq < 0 or redis.call('EXISTS', k.log) == 0)) then
    -- Followers have seen more than the log holds. Only an attempt of its own brings the end to all of them.
    attempt, seq, chars = next_attempt(h, is_torn), 0, '0'
    emit(k.log, k.live, h.channel, id, attempt, 0, meta_body(attempt, '""', h.meta, now, ',"restart":true'))
  end
  if h.state == 'running' or h.usage_lost ~= '' then -- what the lost worker used, nobody can say any more
    seq = seq + 1
    emit(k.log, k.live, h.channel, id, attempt, seq, '"type":"usage",' .. UNKNOWN_USAGE)
    local known = h.usage ~= '' and string.gsub(h.usage, '"source":"%a+"', '"source":"unknown"') or '{' .. UNKNOWN_USAGE
    redis.call('HSET', k.job, 'usage', known)
  end
  if attempt == 0 then
    attempt, seq = 1, 0
    emit(k.log, k.live, h.channel, id, 1, 0, meta_body(1, '""', h.meta, now, ''))
  end
  if code ~= '' then
    seq = seq + 1
    emit(k.log, k.live, h.channel, id, attempt, seq, '"type":"error","code":"' .. code .. '","message":'
      .. cjson.encode(message) .. ',"retryable":false,"will_retry":false}')
    redis.call('HSET', k.job, 'error', cjson.encode({code = code, message = message}))
  end
  seq = seq + 1
  local total = int(now - tonumber(h.created))
  emit(k.log, k.live, h.channel, id, attempt, seq, '"type":"done","finish_reason":"' .. reason .. '","text_length":'
    .. chars .. ',"timings":{"total":' .. total .. '}}')
  redis.call('HSET', k.job, 'state', state, 'finish_reason', reason, 'attempt', attempt, 'seq', seq, 'chars', chars,
    'owner', '', 'ended', int(now), 'timings', '{"total":' .. total .. '}')
  retire(k.job, k.log, k.expiries, id, h.tenant, now, h.retention)
end

local FIELDS = {'state', 'attempt', 'seq', 'chars', 'created', 'tenant', 'meta', 'channel', 'retention', 'owner',
  'entry', 'stream', 'cancel', 'failures', 'max_attempts', 'on_takeover', 'visible', 'spec', 'usage', 'lost', 'deadline',
  'usage_lost', 'how', 'run'}

-- The job's hash as a table, or nil where there is none.
local function read_job(job_key)
  local values = redis.call('HMGET', job_key, unpack(FIELDS))
  if not values[1] then
    return nil
  end
  local h = {}
  for i, name in ipairs(FIELDS) do
    h[name] = values[i] or ''
  end
  return h
end

-- Charge the job an attempt's failure, and gives how many it has. `entry` goes to the list of errors: a JSON array kept
-- as text, so that Lua never re-encodes it.
local function add_failure(job_key, entry)
  local list = redis.call('HGET', job_key, 'errors')
  if not list or list == '[]' then
    redis.call('HSET', job_key, 'errors', '[' .. entry .. ']')
  else
    redis.call('HSET', job_key, 'errors', string.sub(list, 1, -2) .. ',' .. entry .. ']')
  end
  return redis.call('HINCRBY', job_key, 'failures', 1)
end

-- What keeps an attempt's next events from its log; nil: nothing. A lost log is noted (seq -1), so that a backfill does
-- not take what it brings for known.
local function gap(job_key, log, first, last)
  if redis.call('EXISTS', log) == 0 then -- evicted or expired
    redis.call('HSET', job_key, 'seq', -1)
    return {'gap', -1}
  end
  return first ~= last + 1 and {'gap', last} or nil
end

-- Dead letters that a queue keeps; beyond it the oldest go.
local MOST_DEAD = 100000

-- A dead letter: what was asked, why it failed, and how each attempt failed.
local function bury(dead, job_key, id, now, reason)
  local h = redis.call('HMGET', job_key, 'spec', 'errors', 'tenant')
  redis.call('XADD', dead, 'MAXLEN', '~', MOST_DEAD, '*', 'id', id, 'job', h[1] or '', 'tenant', h[3] or 'default',
    'reason', reason, 'errors', h[2] or '[]', 'died', int(now))
end

-- Note that this attempt is lost, and with it what it used. `usage_lost` is the first attempt whose usage nobody has
-- settled: the next to run estimates it from the log, from that attempt on.
local function lose_usage(job_key, h)
  if h.usage_lost == '' then
    h.usage_lost = h.attempt
    redis.call('HSET', job_key, 'usage_lost', h.attempt)
  end
end

-- Give an entry back to the worker that runs its job; if that one is dead, the reaper finds the entry with it.
local function hand_back(stream, group, owner, entry)
  redis.call('XCLAIM', stream, group, owner, 0, entry, 'JUSTID')
end

local function drop_entry(stream, group, entry)
  if entry ~= '' then
    redis.call('XACK', stream, group, entry)
    redis.call('XDEL', stream, entry)
  end
end
